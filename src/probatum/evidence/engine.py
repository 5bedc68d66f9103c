"""Runs claims: owns the loop over seeds, resumes, spreads, judges by the declared looks, and writes records."""

import shutil
import time
from base64 import b64decode
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from probatum import __version__
from probatum.catalog import find_paper
from probatum.errors import MissingExtra, NotHere, ProbatumError, did_you_mean
from probatum.evidence import store
from probatum.evidence.code import code_state
from probatum.evidence.conditions import Outcome, worst_of
from probatum.evidence.declaration import BUDGETS, Claim
from probatum.evidence.environment import cores, environment
from probatum.evidence.ladder import Looks
from probatum.evidence.measurements import Measurement, Table
from probatum.evidence.meters import calibrate
from probatum.evidence.pool import LocalPool, Pool, RayPool
from probatum.evidence.seeds import draw_figures, measure_seed

__all__ = ["Options", "Result", "Watch", "check", "write_record"]


@dataclass(frozen=True)
class Options:
    """How to check. `seeds` other than the declared number gives a labelled record; `keep` is a folder for records worth publishing."""

    budget: str = "quick"
    seeds: int | None = None
    device: str = "cpu"
    jobs: int = 1
    cluster: str | None = None
    fresh: bool = False
    until_decided: bool = False
    keep: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise ProbatumError(f"--budget must be one of {', '.join(BUDGETS)}, got {self.budget!r}")
        if self.jobs < 1:
            raise ProbatumError(f"--jobs must be 1 or more, got {self.jobs}")
        kind, _, index = self.device.partition(":")
        if kind not in ("cpu", "cuda", "mps", "xpu") or (index and not index.isdigit()):
            hint = did_you_mean(kind, ("cpu", "cuda", "mps", "xpu"))
            raise ProbatumError(f"--device must be cpu, cuda, cuda:N, mps or xpu, got {self.device!r}: {hint}")
        if self.until_decided and self.seeds is not None:
            raise ProbatumError("--until-decided declares its own numbers of seeds: leave --seeds out")


@dataclass
class Result:
    """What came of one claim: `record` is its whole document; `figures` are paths of files."""

    claim: Claim
    verdict: str
    record: dict[str, Any]
    error: str | None = None
    unavailable: bool = False
    figures: list[str] = field(default_factory=list)


class Watch(Protocol):
    """What the engine tells while it works; the command line draws it."""

    def expect(self, claim: Claim, seeds_left: int, seconds: float | None, prospects: list[str]) -> None: ...

    def begin(self, claim: Claim, seed: int) -> None: ...

    def progress(self, message: dict[str, Any]) -> None: ...

    def seed_done(self, claim: Claim, seed: int, done: int, planned: int) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...

    def end(self, result: Result) -> None: ...


class Case:
    """One claim on its way: its plan, its finished seeds on disk, its looks."""

    def __init__(self, claim: Claim, options: Options) -> None:
        self.claim, self.options = claim, options
        self.code = code_state(find_paper(claim.paper))
        self.clean = self.code["state"] in ("clean", "installed")
        self.declared = 1 if options.budget == "smoke" else claim.budgets[options.budget]
        self.stem = store.record_name(claim.name, options.budget, options.device).removesuffix(".json")
        key = f"v{claim.version}-{self.code['hash'][:12]}-{'clean' if self.clean else 'modified'}"
        if options.seeds is not None and options.seeds != self.declared:
            key += f"-{options.seeds}"
        self.folder = store.home() / "runs" / claim.paper / self.stem / key
        self.done: dict[int, dict[str, Any]] = {}
        self.failure: tuple[str, bool] | None = None  # text, unavailable
        self.outcomes: list[Outcome] = []
        self.look = 0
        self.plan = self._open()

    # The plan is written before the first seed and binds every later session of this run.
    def _open(self) -> dict[str, Any]:
        options, smoke = self.options, self.options.budget == "smoke"
        count = options.seeds or self.declared
        least = 1 if smoke else max(condition.minimum["seeds"] for condition in self.claim.holds_if)
        if count < least:
            raise ProbatumError(f"--seeds must be at least {least} for {self.claim.id} (its conditions need that many), got {count}")
        fresh = {"mode": "single", "looks": [count], "exploratory": None, "started": _now(), "sessions": 0}
        if smoke:
            return fresh
        plan = store.read_json(self.folder / "plan.json")
        if plan and options.fresh:
            seen = (self.folder / "seen").exists()
            self._set_aside()
            plan = {**fresh, "exploratory": "started afresh after its result was seen" if seen else None}
        self.done = {} if options.fresh else self._read_seeds()
        plan = plan or fresh
        if options.until_decided and plan["mode"] == "single":
            # Declared before the first seed it is a ladder; after seeds were run it extends the look that was promised.
            mode = "extended" if self.done else "ladder"
            plan = {**plan, "mode": mode, "looks": [count, 2 * count, 4 * count]}
        return plan

    def start(self) -> None:
        """Write the plan, before anything is measured."""
        if self.options.budget != "smoke":
            self.plan["sessions"] += 1
            store.write_json(self.folder / "plan.json", self.plan)

    def _set_aside(self) -> None:
        aside = self.folder.with_name(f"{self.folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        self.folder.rename(aside)

    def _read_seeds(self) -> dict[int, dict[str, Any]]:
        found = {}
        for path in sorted(self.folder.glob("seed-*.json")):
            document = store.read_json(path)
            if document is not None:
                found[int(document["seed"])] = document
        return found

    @property
    def planned(self) -> list[int]:
        """Seeds up to the present look."""
        return self.claim.seeds(self.plan["looks"][self.look])

    def missing(self) -> list[int]:
        return [seed for seed in self.planned if seed not in self.done]

    def keep(self, seed: int, document: dict[str, Any]) -> None:
        """Store a finished seed at once; pictures of the first seed alone are kept."""
        if seed != self.claim.first_seed:
            document = {**document, "pictures": []}
        if self.options.budget != "smoke":
            store.write_json(self.folder / f"seed-{seed}.json", document)
        self.done[seed] = document

    def table(self, seeds: Sequence[int]) -> Table:
        return Table(Measurement.from_json(row) for seed in seeds for row in self.done[seed]["measurements"])

    def judge(self) -> bool:
        """Judge the present look; True when the claim is finished, else the next look's seeds are to be run."""
        table, seeds, looks = self.table(self.planned), self.planned, self.plan["looks"]
        if self.plan["mode"] == "single":
            self.outcomes = [outcome for condition in self.claim.holds_if for outcome in condition.judge(table)]
        else:
            self.outcomes = self.ladder.judge(self.claim.holds_if, table, seeds)
        (self.folder / "seen").touch()
        if self.look + 1 == len(looks) or all(outcome.verdict != "inconclusive" for outcome in self.outcomes):
            return True
        self.look += 1
        return False

    @property
    def ladder(self) -> Looks:
        return Looks(self.plan["looks"][0], extended=self.plan["mode"] == "extended")


def check(claims: Iterable[Claim], options: Options, watch: Watch) -> list[Result]:
    """Check claims and write their records; one result a claim, in the order given.

    Raises:
        ProbatumError: bad options; another check of one of the papers is running.
        KeyboardInterrupt: after the workers were ended; finished seeds are kept.
    """
    claims = list(claims)
    if options.keep is not None:
        _check_keep(claims, options)
    with ExitStack() as stack:
        for paper in sorted({claim.paper for claim in claims}):
            busy = f"another check of {paper} is running; wait for it or stop it (its finished seeds are kept)"
            stack.enter_context(store.lock(f"check-{paper}", busy))
        cases = [Case(claim, options) for claim in claims]
        seeds = sum(case.plan["looks"][-1] for case in cases)  # a single one has the machine to itself, but not a smoke run, many of which run at once
        threads = max(1, cores() // (options.jobs if options.budget == "smoke" else min(options.jobs, seeds)))
        pool: Pool = RayPool(options.cluster) if options.cluster else LocalPool(options.jobs, threads)
        stack.callback(pool.close)
        return _Loop(cases, options, watch, pool).run()


def _check_keep(claims: Sequence[Claim], options: Options) -> None:
    if options.budget == "smoke" or options.seeds is not None:
        raise ProbatumError("--keep takes a verdict of the declared seeds: leave --seeds out and use --budget quick or full")
    for claim in claims:
        if code_state(find_paper(claim.paper))["state"] == "modified":
            raise ProbatumError("--keep takes records of a clean committed tree, and src/ has changes: commit them first")


class _Loop:
    def __init__(self, cases: list[Case], options: Options, watch: Watch, pool: Pool) -> None:
        self.cases, self.options, self.watch, self.pool = cases, options, watch, pool
        self.results: dict[str, Result] = {}
        self.waiting: deque[tuple[Case, str, int]] = deque()
        self.calibration = calibrate()

    def run(self) -> list[Result]:
        for case in self.cases:
            self._announce(case)
        for case in sorted(self.cases, key=lambda case: case.claim.alone):  # what must run alone comes last
            case.start()
            self._schedule(case)
        while self.waiting or self.pool.busy:
            while self.waiting and self.pool.accepts(self.waiting[0][0].claim.alone):
                self._submit(*self.waiting.popleft())
            for token, kind, content in self.pool.events(0.2):
                self._handle(token, kind, content)  # type: ignore[arg-type]
            self.watch.tick()
        return [self.results[case.claim.id] for case in self.cases]

    def _announce(self, case: Case) -> None:
        known = _published(case.claim, self.options)
        left = case.missing()
        seconds = None
        if known and known["seeds"]:
            speed = known.get("calibration", self.calibration) / self.calibration
            together = 1 if case.claim.alone else min(self.options.jobs, max(len(left), 1))
            seconds = known["seconds"] / len(known["seeds"]) * speed * len(left) / together
        prospects = []
        for condition in known["conditions"] if known else ():
            width, distance = condition.get("half_width"), condition.get("distance")
            if width is not None and distance is not None:
                verdict = ", expected inconclusive" if width > distance else ""
                prospects.append(f"{condition['text']}: half-width {width:.3g} to expect, {distance:.3g} from the bound{verdict}")
        self.watch.expect(case.claim, len(left), seconds, prospects)

    def _schedule(self, case: Case) -> None:
        """Queue what the case still needs; finish it when that is nothing."""
        while not (left := case.missing()):
            if self.options.budget == "smoke":
                self._finish(case, "ran")
                return
            try:
                finished = case.judge()
            except ProbatumError as error:
                case.failure = (str(error), False)
                self._finish(case, "error")
                return
            if finished:
                if case.claim.drawings:
                    self.waiting.appendleft((case, "draw", 0))  # first: its record is written when it is drawn
                else:
                    self._finish(case, _verdict(case))
                return
        for seed in left:
            self.waiting.append((case, "seed", seed))

    def _submit(self, case: Case, what: str, seed: int) -> None:
        claim, options = case.claim, self.options
        token = (self.cases.index(case), what, seed)
        if what == "draw":
            rows = [row.to_json() for row in case.table(case.planned)]
            self.pool.submit(token, draw_figures, (claim.module, claim.name, options.budget, options.device, rows))
            return
        self.watch.begin(claim, seed)
        artifacts = None if options.cluster else str(store.home() / "artifacts")
        args = (claim.module, claim.name, options.budget, seed, options.device, case.code["hash"], artifacts)
        self.pool.submit(token, measure_seed, args, alone=claim.alone)

    def _handle(self, token: tuple[int, str, int], kind: str, content: Any) -> None:
        case, what, seed = self.cases[token[0]], token[1], token[2]
        if case.claim.id in self.results:  # it failed while others of its seeds were running
            return
        if kind == "progress":
            self.watch.progress(content)
        elif kind != "done":
            case.failure = (str(content), isinstance(content, (MissingExtra, NotHere)))
            self.waiting = deque(entry for entry in self.waiting if entry[0] is not case)
            self._finish(case, "error")
        elif what == "draw":
            self._finish(case, _verdict(case), content)
        else:
            case.keep(seed, content)
            self.watch.seed_done(case.claim, seed, len([s for s in case.planned if s in case.done]), len(case.planned))
            if not case.missing():
                self._schedule(case)

    def _finish(self, case: Case, verdict: str, drawn: dict[str, Any] | None = None) -> None:
        record = _record(case, verdict, self.options, self.calibration)
        result = Result(case.claim, verdict, record)
        if case.failure:
            result.error, result.unavailable = case.failure
        elif verdict != "ran":
            pictures = [p for seed in case.planned for p in case.done[seed]["pictures"]] + (drawn or {}).get("pictures", [])
            record["notes"] += [note for note in (drawn or {}).get("notes", []) if note not in record["notes"]]
            record["figures"] = [{"name": p["name"], "caption": p["caption"], "file": f"{p['name']}.png"} for p in pictures]
            places = [store.home() / _kind(case) / case.claim.paper]
            if self.options.keep is not None:
                places.append(self.options.keep / case.claim.paper)
            for place in places:
                result.figures = write_record(place, case.stem, record, pictures)
        self.results[case.claim.id] = result
        self.watch.end(result)


def _verdict(case: Case) -> str:
    return worst_of(outcome.verdict for outcome in case.outcomes)


def _kind(case: Case) -> str:
    if case.plan["exploratory"] or (case.options.seeds or case.declared) != case.declared:
        return "labelled"
    return "records" if case.clean else "modified"


def _record(case: Case, verdict: str, options: Options, calibration: float) -> dict[str, Any]:
    claim, seeds = case.claim, [seed for seed in case.planned if seed in case.done]
    documents = [case.done[seed] for seed in seeds]
    looks = None
    if case.plan["mode"] != "single":
        extended = case.plan["mode"] == "extended"
        looks = {"looks": case.plan["looks"], "look": case.plan["looks"][case.look], "extended": extended}
    notes = list(dict.fromkeys(note for document in documents for note in document["notes"]))
    if looks:
        notes.append(case.ladder.note)
    return {
        "format": 1, "kind": "claim", "probatum": __version__, "paper": claim.paper, "claim": claim.name, "version": claim.version,
        "says": claim.says, "source": claim.source, "paper_figure": claim.reported or None, "protocol": claim.protocol,
        "budget": options.budget, "device": options.device, "seeds": seeds, "declared": case.declared, "ladder": looks,
        "exploratory": case.plan["exploratory"], "interrupted": False, "sessions": case.plan["sessions"],
        "started": case.plan["started"], "seconds": sum(document["seconds"] for document in documents),
        "command": options.command, "code": case.code, "calibration": calibration,
        "measurements": [row for document in documents for row in document["measurements"]],
        "conditions": [outcome.to_json() for outcome in case.outcomes],
        "verdict": verdict, "error": case.failure[0] if case.failure else None, "figures": [],
        "environment": documents[0]["environment"] if documents else environment(), "notes": notes,
    }  # fmt: skip


def write_record(place: Path, stem: str, record: dict[str, Any], pictures: list[dict[str, str]]) -> list[str]:
    """Figures into a fresh folder, the folder into its place, then the record: a killed write leaves the old record with its figures."""
    target = place / stem
    paths = []
    if pictures:
        fresh = place / f".{stem}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        for picture in pictures:
            store.write_bytes(fresh / f"{picture['name']}.png", b64decode(picture["png"]))
            paths.append(str(target / f"{picture['name']}.png"))
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    elif target.exists():
        shutil.rmtree(target)
    store.write_json(place / f"{stem}.json", record)
    return paths


def _published(claim: Claim, options: Options) -> dict[str, Any] | None:
    """The record to plan by: the published one, else this machine's; of the same version of the claim."""
    if options.budget == "smoke":
        return None
    name = store.record_name(claim.name, options.budget, options.device)
    for root in (store.committed_records(), store.home() / "records", store.home() / "modified"):
        if root is not None:
            record = store.load_record(root / claim.paper / name)
            if record and record["version"] == claim.version and record["verdict"] != "error":
                return record
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
