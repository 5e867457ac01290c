/* Calls register tiles that are linked to it, as a file of cases says, and writes what they leave in c and y.

   A case is 17 int64: function, mr, steps, lda, a_step, carry, locality, ldy (-1: no y), how far a second panel and its
   sums are from the first, and the bytes of a, b, c, y, row_scale, col_scale and offset; then these seven arrays. Each
   array ends where no page can be read. Tiles of one panel ignore the last two arguments. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef void tile(int64_t mr, int64_t steps, char *a, int64_t lda, int64_t a_step, char *b, char *ahead,
                  int64_t ahead_step, int64_t locality, char *c, bool carry, char *y, int64_t ldy, char *row_scale,
                  char *col_scale, char *offset, int64_t b_step, int64_t c_step);

#define TILE(name) extern tile name;
#include "tiles.h"
#undef TILE

#define TILE(name) name,
static tile *const tiles[] = {
#include "tiles.h"
};

enum { N_ARRAYS = 7, N_WORDS = 10 + N_ARRAYS };

struct guarded {
    char *pages, *data;
    size_t n_pages_bytes, n_bytes;
};

static struct guarded read_array(FILE *cases, size_t n_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (n_bytes + page - 1) / page * page;
    struct guarded array = {NULL, NULL, whole + page, n_bytes};
    array.pages = mmap(NULL, array.n_pages_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (array.pages == MAP_FAILED || mprotect(array.pages + whole, page, PROT_NONE) != 0)
        exit(3);
    array.data = array.pages + whole - n_bytes;
    if (fread(array.data, 1, n_bytes, cases) != n_bytes)
        exit(4);
    return array;
}

int main(int argc, char **argv)
{
    FILE *cases = argc == 3 ? fopen(argv[1], "rb") : NULL, *out = argc == 3 ? fopen(argv[2], "wb") : NULL;
    int64_t word[N_WORDS];
    if (cases == NULL || out == NULL)
        return 2;
    while (fread(word, sizeof(int64_t), N_WORDS, cases) == N_WORDS) {
        struct guarded array[N_ARRAYS];
        for (int i = 0; i < N_ARRAYS; i++)
            array[i] = read_array(cases, (size_t)word[10 + i]);
        char *a = array[0].data, *b = array[1].data, *c = array[2].data, *y = word[7] < 0 ? NULL : array[3].data;
        tiles[word[0]](word[1], word[2], a, word[3], word[4], b, b + 100, 7, word[6], c, word[5] != 0, y, word[7],
                       array[4].data, array[5].data, array[6].data, word[8], word[9]);
        fwrite(c, 1, array[2].n_bytes, out);
        fwrite(array[3].data, 1, array[3].n_bytes, out);
        for (int i = 0; i < N_ARRAYS; i++)
            munmap(array[i].pages, array[i].n_pages_bytes);
    }
    return fclose(out);
}
