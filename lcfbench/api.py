"""Everything that the command line does, for notebooks and programs: one call each, silent by default.

>>> found = run(mode=["receiver", "lcf"], task="splitfacts", control=["matched", "deranged"], limit=64)
>>> found.samples, found.summary(), found.verdicts()
>>> pair = load_pair("smollm2-135m:gemma3-270m")
>>> create("t2t", pair).ask("Which metal conducts heat best?").message
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.adapters.select import AdapterMissing, find_adapter, pick_adapter
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.planning import Plan, Planned
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Method
from lcfbench.methods.create import create as create_method
from lcfbench.methods.create import method_class, sides
from lcfbench.methods.load_pair import Pair, load_adapter, load_pair
from lcfbench.progress import Bars, Progress, Silent, TeachProgress, TrainProgress, quiet_libraries
from lcfbench.results.gathering import is_sealed
from lcfbench.tasks.yaml_files import describe
from lcfbench.watching.tracked import Tracked

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.probing.probe import Probe
    from lcfbench.results.reader import Paths

__all__ = [
    "Results",
    "create",
    "gather",
    "load_pair",
    "plan",
    "planned",
    "probe",
    "replay",
    "run",
    "teach",
    "train",
]


@dataclass(frozen=True)
class Results:
    """The recorded runs of one call. folders: one for each run, in the order of the recipe."""

    folders: list[Path]

    @property
    def run_ids(self) -> list[str]:
        """Names of the runs."""
        return [folder.name for folder in self.folders]

    @property
    def samples(self) -> pd.DataFrame:
        """One row for each document and run, with every recorded column."""
        from lcfbench.results.reader import load_samples

        return load_samples(self.folders)

    def failed(self) -> dict[str, str]:
        """The runs in which more documents failed than `max_failed` allows, or all: a sentence each."""
        from lcfbench.results.failures import failed_runs

        return {each.run_id: each.sentence for each in failed_runs(self.folders)}

    def summary(self) -> pd.DataFrame:
        """One row for each method, task and control: scores, intervals, latency, sizes."""
        from lcfbench.analysis.summary import load_summary

        return load_summary(self.folders)

    def verdicts(self, delta: float = 0.02) -> pd.DataFrame:
        """One row for each claim whether a method communicates.

        delta: contents smaller than this share count as none. Raises UserError where no run sends.
        """
        from lcfbench.analysis.summary import verdicts

        return verdicts(self.folders, delta)

    def averages(self, *groups: str) -> pd.DataFrame:
        """One row for each group of tasks and method: weighted averages, and what the group lacks.

        groups: names or YAML files; by default those of which two tasks were run. Raises UserError for
        a name that no group has.
        """
        from lcfbench.analysis.groups import load_averages

        return load_averages(self.folders, groups)

    def plot_frontier(
        self, folder: Path | str = ".", *, data: Path | str | None = None, **chosen: Any
    ) -> list[Path]:
        """Draws scores against adapter size, latency, message bytes or computation, as the shell does.

        chosen: x, task, pair (names), published, average, pool_seeds (yes or no). data: also a .csv or
        .figure.parquet of the numbers. Returns the files. Raises UserError for names that no run has.
        """
        from lcfbench.analysis.frontier import Choice, draw
        from lcfbench.results.reader import warn_all

        if strange := sorted(chosen.keys() - {f.name for f in fields(Choice)}):
            raise unknown(
                "choice", strange[0], [f.name for f in fields(Choice)], "lcfbench plot frontier --help"
            )
        warnings: list[str] = []
        files = draw(
            self.folders, Path(folder), Choice(**chosen), Path(data) if data is not None else None, warnings
        )
        warn_all(warnings)
        return files

    def plot_rate(self, folder: Path | str = ".", **chosen: Any) -> list[Path]:
        """Draws content P with its interval against message bytes, as the shell does.

        chosen: fields of `lcfbench.analysis.rate.Choice` (task, pair, aim, data). Returns the files. Raises
        UserError for names that no run has.
        """
        from lcfbench.analysis.rate import Choice, draw
        from lcfbench.results.reader import warn_all

        if strange := sorted(chosen.keys() - {f.name for f in fields(Choice)}):
            raise unknown("choice", strange[0], [f.name for f in fields(Choice)], "lcfbench plot rate --help")
        warnings: list[str] = []
        if chosen.get("data") is not None:
            chosen["data"] = Path(chosen["data"])
        drawn = draw(self.folders, Path(folder), Choice(**chosen), warnings)
        warn_all(warnings)
        return drawn.files

    def kept(self, whole: str, share: float = 0.8, share_of_bytes: float = 0.01) -> pd.DataFrame:
        """Returns what each message keeps of a whole one's content and bytes, a line each.

        whole: its label or method, as kvcomm. Columns: fields of `lcfbench.analysis.kept.Kept`. Raises
        UserError where no run is of it.
        """
        import pandas as pd

        from lcfbench.analysis.kept import Aim, Kept, kept
        from lcfbench.analysis.run_groups import read_run_groups
        from lcfbench.results.reader import warn_all

        found = read_run_groups(self.folders)
        warn_all(found.warnings)
        return pd.DataFrame(kept(found.groups, Aim(whole, share, share_of_bytes)), columns=Kept._fields)

    def plot_length(
        self, folder: Path | str = ".", *, data: Path | str | None = None, **chosen: str
    ) -> list[Path]:
        """Draws score and time to answer by the length of the sharer's context, as the shell does.

        chosen: task, pair, dial (the task option that makes contexts longer). data: also a .csv of the
        numbers. Returns the files. Raises UserError for names that no run has.
        """
        from lcfbench.analysis.length import Choice, draw
        from lcfbench.results.reader import warn_all

        if strange := sorted(chosen.keys() - {f.name for f in fields(Choice)}):
            raise unknown(
                "choice", strange[0], [f.name for f in fields(Choice)], "lcfbench plot length --help"
            )
        warnings: list[str] = []
        to = Path(data) if data is not None else None
        _, files = draw(self.folders, Path(folder), Choice(**chosen), to, warnings)
        warn_all(warnings)
        return files


def run(
    recipe: Recipe | Path | str | None = None, *, progress: bool | Progress = False, **settings: Any
) -> Results:
    """Runs methods on tasks and records every document, as `lcfbench run` does.

    recipe: a Recipe, a YAML file or a packaged recipe, which `settings` (Recipe's fields) overlay.
    progress: True shows bars; with train=True it hears trainings too. With a `shard` the results are the
    runs that it completed. Raises UserError for names, data, models or adapters that are not there.
    """
    from lcfbench.evaluation.plan import with_tasks
    from lcfbench.evaluation.runner import run as run_recipe

    quiet_libraries()
    chosen, shown = _merged(Recipe, recipe, settings, "run"), _shown(progress)
    try:
        if chosen.train:
            from lcfbench.training.on_demand import train_missing

            chosen = train_missing(chosen, shown)
        if chosen.tracker:
            shown = Tracked(shown, chosen.tracker, chosen.out)
        folders = [chosen.out / run_id for run_id in run_recipe(with_tasks(chosen), shown)]
        return Results([folder for folder in folders if not chosen.shard or is_sealed(folder)])
    except AdapterMissing as error:
        from lcfbench.training.on_demand import with_estimate

        raise with_estimate(error, chosen) from error


def plan(
    recipe: Recipe | Path | str | None = None, *, progress: bool | Progress = False, **settings: Any
) -> pd.DataFrame:
    """Lists what `run` would do with the same arguments: a row a run, as `lcfbench plan` does.

    Raises UserError as `run` does before it begins.
    """
    import pandas as pd

    found = planned(_merged(Recipe, recipe, settings, "run"), _shown(progress))
    return pd.DataFrame([asdict(each) for each in found.runs], columns=[f.name for f in fields(Planned)])


def gather(folders: Paths, out: Path | str = "results") -> pd.DataFrame:
    """Puts the parts of runs together, as `lcfbench gather` does: a row a run, with its state.

    folders: of results, runs or shards; they stay as they are. Raises UserError for one without runs, and
    where another process writes a run.
    """
    import pandas as pd

    from lcfbench.evaluation.gathering import gather as gather_parts
    from lcfbench.results.reader import as_paths, warn_all

    quiet_libraries()
    found = gather_parts(as_paths(folders), Path(out))
    warn_all([text for each in found for text in each.warnings])
    columns = ["run_id", "state", "rows", "documents"]
    return pd.DataFrame([{name: getattr(each, name) for name in columns} for each in found], columns=columns)


def replay(
    run: Path | str,
    documents: Sequence[str] = (),
    *,
    adapter: Path | str | None = None,
    files: Sequence[Path | str] = (),
    progress: bool | Progress = False,
) -> pd.DataFrame:
    """Answers documents of a run again from the messages that it kept, as `lcfbench message replay` does.

    The sharer is not run. run, documents: as `load_messages` takes them. adapter: where the run's adapter
    is now. files: where files of methods, tasks and controls are now that the run was given by their paths.
    A row a document: the answer and score of the row and those now, and whether they are `equal`.
    Raises UserError where models, adapter, task or prompts are not those of the run.
    """
    import pandas as pd

    from lcfbench.evaluation.replay import Replayed
    from lcfbench.evaluation.replay import replay as replay_run
    from lcfbench.results.recorded_run import run_with_messages

    quiet_libraries()
    place = Path(adapter) if adapter is not None else None
    found = replay_run(
        run_with_messages(Path(run)), _shown(progress), documents, place, list(map(Path, files))
    )
    columns = [*(f.name for f in fields(Replayed)), "equal"]
    return pd.DataFrame([{**asdict(each), "equal": each.equal} for each in found], columns=columns)


def planned(recipe: Recipe, progress: Progress) -> Plan:
    """Lists the runs of a recipe. Raises UserError; adapters that `train` would make have no runs yet."""
    from lcfbench.evaluation.plan import with_tasks
    from lcfbench.evaluation.planning import plan as plan_recipe

    quiet_libraries()
    try:
        return plan_recipe(with_tasks(recipe), progress)
    except AdapterMissing as error:
        from lcfbench.training.on_demand import with_estimate

        if recipe.train:
            what = f"a run's id covers its adapter, and one is not trained yet: {error.what}"
            raise UserError(what, "Train it first: the same `lcfbench run` with --train does.") from error
        raise with_estimate(error, recipe) from error


def train(recipe: Any = None, *, progress: bool | TrainProgress = False, **settings: Any) -> list[Path]:
    """Trains adapters as `lcfbench train` does; returns their folders.

    recipe: a TrainRecipe, a YAML file or a packaged recipe, which `settings` (TrainRecipe's fields)
    overlay. Raises UserError as the command line does.
    """
    from lcfbench.training.recipe import TrainRecipe
    from lcfbench.training.trainer import train as train_recipe

    quiet_libraries()
    chosen = _merged(TrainRecipe, recipe, settings, "train")
    return train_recipe(chosen, _shown(progress))


def teach(recipe: Any = None, *, progress: bool | TeachProgress = False, **settings: Any) -> Path:
    """Teaches a base model a task's facts or its train split, as `lcfbench teach` does; returns the folder.

    recipe: a TeachRecipe or a YAML file, which `settings` (TeachRecipe's fields) overlay. Raises UserError
    as the command line does.
    """
    from lcfbench.teaching.recipe import TeachRecipe
    from lcfbench.teaching.teacher import teach as teach_recipe

    quiet_libraries()
    return teach_recipe(_merged(TeachRecipe, recipe, settings, "teach"), _shown(progress))


def probe(recipe: Any = None, *, progress: Any = False, **settings: Any) -> Probe:
    """Answers whether a cache channel is worth it for a pair and a task, as `lcfbench probe` does.

    recipe: a ProbeRecipe or a YAML file, which `settings` (ProbeRecipe's fields) overlay. The page is
    in `.page`, all numbers in `.parts`. Raises UserError as the command line does.
    """
    from lcfbench.probing.probe import probe as run_probe
    from lcfbench.probing.recipe import ProbeRecipe

    quiet_libraries()
    return run_probe(_merged(ProbeRecipe, recipe, settings, "probe"), _shown(progress))


def create(
    mode: str, pair: Pair, adapter: Path | str | None = None, *, task: str = "splitfacts", **options: Any
) -> Method:
    """Makes a method between two loaded models, ready to `ask`.

    adapter: a folder or the name of a shipped adapter; None takes the one that ships for the pair and
    the `task`. options: the method's settings. Raises UserError where one of them does not fit.
    """
    kind = method_class(mode)
    folder = find_adapter(Path(adapter)) if adapter is not None else None
    if folder is None and not kind.adapter_optional:
        shared = describe(task)["context"] == "shared"
        names = sides(kind, *pair.names)
        folder = pick_adapter([], kind.adapter_kinds, names, shared=shared, mode=mode, task=task)
    loaded = load_adapter(folder, pair, mode) if folder is not None else None
    texts = {name: _option(value) for name, value in options.items()}
    return create_method(mode, *pair.models_for(kind.roles), loaded, texts)


def _merged(kind: Any, recipe: Any, settings: Mapping[str, Any], section: str) -> Any:
    """A settings object as it is, or a file and keyword settings as one."""
    if isinstance(recipe, kind):
        if not settings:  # merging would take an empty list for one that was not given
            return recipe
        return kind.merge(None, {**recipe.model_dump(exclude_unset=True), **settings}, section)
    return kind.merge(recipe, dict(settings), section)


def _shown(progress: Any) -> Any:
    """The caller's own progress, bars for True, silence for False."""
    return (Bars() if progress else Silent()) if isinstance(progress, bool) else progress


def _option(value: Any) -> str:
    """An option as text, which the method's fields convert."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
