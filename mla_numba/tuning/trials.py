"""The trials of a search in a journal of Optuna's own, from which an interrupted search goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..call.tuned import forget_search
from .search import Outcome

__all__ = ["SearchJournal", "Trials"]

_OUTCOME = "outcome"


class SearchJournal:
    """A file with a study for each number of tokens, in the form of Optuna's `JournalStorage`.

    `spec`: what is searched, as JSON takes it. Raises `ValueError` for a file that is not a journal of this search, and
    `ImportError` without Optuna.
    """

    def __init__(self, path: Path, spec: Mapping[str, Any]) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path, self._spec = path, json.dumps(spec, sort_keys=True)
        # A lock of the system, which ends with its process; Optuna's own would outlive one that is killed.
        lock: Any = FileLock(path.with_name(f"{path.name}.lock"))
        with lock:
            _cut_off(path)
        try:
            self._storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
            of_spec = {study.user_attrs.get("spec") for study in self._storage.get_all_studies()}
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{path}: expected the journal of a search, got {error!r}") from None
        if of_spec - {self._spec, None}:  # a study has none if its process ended right after making it
            raise ValueError(f"{path}: expected the journal of this search, got that of another")

    def trials(self, t: int) -> Trials:
        """Where the trials of `t` tokens are kept."""
        import optuna

        study = optuna.create_study(study_name=f"T {t}", storage=self._storage, load_if_exists=True)
        if "spec" not in study.user_attrs:
            study.set_user_attr("spec", self._spec)
        return Trials(study)

    def drop(self, t: int) -> None:
        """Forgets the trials of `t` tokens."""
        import optuna

        optuna.delete_study(study_name=f"T {t}", storage=self._storage)

    def remove(self) -> None:
        """Forgets all of it."""
        forget_search(self._path)


def _cut_off(path: Path) -> None:
    """Drops a last line that was not written to its end, since nothing may follow on it."""
    text = path.read_bytes() if path.exists() else b""
    if text and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


class Trials:
    """The trials of one number of tokens, and what came of them once they were finished."""

    def __init__(self, study: Any) -> None:
        self._study = study

    def kept(self) -> list[Any]:
        """The trials so far."""
        return list(self._study.get_trials(deepcopy=False))

    def keep(self, trial: Any) -> None:
        """Appends one to the file."""
        self._study.add_trial(trial)

    @property
    def outcome(self) -> Outcome | None:
        """What came of a search that was finished, None before that."""
        kept = self._study.user_attrs.get(_OUTCOME)
        return None if kept is None else Outcome.from_dict(kept)

    def finish(self, outcome: Outcome) -> None:
        """Keeps the outcome of the search."""
        self._study.set_user_attr(_OUTCOME, outcome.as_dict())
