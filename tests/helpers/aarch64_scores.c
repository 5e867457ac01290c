/* Calls SCORES for each case of a file: ten int64, then a, b, weights, offsets and scores, which are written out. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void SCORES(int64_t, int64_t, int64_t, const void *, int64_t, int64_t, const void *, const void *, const void *, void *,
            const void *, const void *, int64_t, int64_t, int64_t);

static void *filled(FILE *file, size_t n_bytes) {
    void *memory = malloc(n_bytes); /* no byte more, so that tools that watch memory see what is read behind it */
    if (!memory || fread(memory, 1, n_bytes, file) != n_bytes) exit(2);
    return memory;
}

int main(int argc, char **argv) {
    FILE *cases = fopen(argv[argc - 2], "rb"), *results = fopen(argv[argc - 1], "wb");
    int64_t given[10]; /* n_heads, n, steps, lda, a_step, bytes of a, b, weights, offsets, scores */
    while (fread(given, sizeof given, 1, cases) == 1) {
        void *arrays[5];
        for (int i = 0; i < 5; i++) arrays[i] = filled(cases, given[5 + i]);
        SCORES(given[0], given[1], given[2], arrays[0], given[3], given[4], arrays[1], arrays[2], arrays[3], arrays[4],
               NULL, NULL, 0, 0, 0);
        fwrite(arrays[4], 1, given[9], results);
        for (int i = 0; i < 5; i++) free(arrays[i]);
    }
    return fclose(results);
}
