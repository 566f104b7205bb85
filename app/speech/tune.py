"""Finding how the whisper worker is best cut on this machine, by measuring; `toban tune` shows it."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.errors import NotReady
from app.settings import Whisper
from app.speech.memory import DoesNotFit, plan
from app.speech.models import Models
from app.speech.pace import Pace
from app.speech.trial import Candidate, Sample, Samples, run, sample, shipped
from app.speech.voice import RATE

BATCHES = (1, 2, 4, 8, 16)
FINALS = 2  # further runs of the two best, in turn

# One run is to take about so long: shorter ones differ by chance, and all of them should take a minute or two.
_RUN = 7.0  # seconds
_LEAST = 60.0  # seconds of sound
MOST = 16 * 60.0  # seconds of sound; it fills 32 chunks
_GAIN = 1.01  # times the speed; what gains less is chance
_SAME = 0.98  # of the best speed; what is this near is as good, and the memory decides
_HOPELESS = 0.9  # of the best speed

Fits = Callable[[Candidate], bool]


@dataclass
class Result:
    """What came of a candidate.

    `speeds`: audio seconds per second, all children together, one for each run. `peak`: bytes, all children together.
    `failed`: why it can't be chosen.
    """

    candidate: Candidate
    speeds: list[float] = field(default_factory=list)
    peak: int = 0
    failed: str | None = None

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds) if self.speeds and not self.failed else 0.0


class Tuner:
    """Measures with the settings' engine, model, compute type and memory limit on `cores` of the processor.

    `report` gets a result after each of its runs. Raises `NotReady` when the model is not here, or does not fit.
    """

    def __init__(self, settings: Whisper, cores: int, report: Callable[[Result], None]) -> None:
        if Models(settings).find(settings.model) is None:
            raise NotReady(
                f"the model {settings.model} is not on this machine; `toban models pull {settings.model}` gets it"
            )
        # What is set by hand would leave nothing to choose from.
        self._settings = settings.model_copy(update={"children": 0, "threads": 0, "batch": 0})
        self._cores = cores
        self._report = report
        self.limit = plan(self._settings, cores).limit
        self.results: list[Result] = []

    def sample_seconds(self) -> float:
        """How much sound keeps each child busy for one run."""
        first = next(iter(rows(self._cores, BATCHES, self.fits)))[0]
        with sample(repeated(shipped(), _LEAST), _LEAST, "en") as sound:
            pilot = self._run(Result(first), sound)
        if pilot.failed:
            raise NotReady(f"the model {self._settings.model} can't be measured: {pilot.failed}")
        return min(max(pilot.speed / first.children * _RUN, _LEAST), MOST)

    def best(self, sound: Sample) -> Result:
        """The candidate that hears most. Raises `NotReady` when none can be used."""

        def measure(candidate: Candidate) -> float:
            self.results.append(Result(candidate))
            self._report(self._run(self.results[-1], sound))
            return self.results[-1].speed

        explore(rows(self._cores, self._batches(sound), self.fits), measure)
        finalists = sorted(self.results, key=lambda result: -result.speed)[:2]
        for result in finalists * FINALS if len(finalists) > 1 else ():
            self._report(self._run(result, sound))
        return chosen(self.results)

    def compute_types(self, best: Candidate, sound: Sample) -> dict[str, float]:
        """The speed of the best candidate with the other types that this processor has."""
        if self._settings.engine != "faster-whisper":
            return {}
        from ctranslate2 import get_supported_compute_types

        found = {}
        # On a processor int8 and int8_float32 are the same.
        for kind in sorted({kind.removesuffix("_float32") for kind in get_supported_compute_types("cpu")}):
            changed = self._settings.model_copy(update={"compute_type": kind})
            if kind != self._settings.compute_type.removesuffix("_float32") and self._share(best, changed):
                found[kind] = run(best, changed, sound).speed
        return {kind: speed for kind, speed in found.items() if speed}

    def fits(self, candidate: Candidate) -> bool:
        """Whether its need is within the limit."""
        return self._share(candidate, self._settings) is not None

    def _run(self, result: Result, sound: Sample) -> Result:
        """One more run of a candidate."""
        done = run(result.candidate, self._settings, sound)
        result.peak = max(result.peak, done.peak)
        result.failed = result.failed or done.failed
        share = self._share(result.candidate, self._settings) or 0
        if done.peak > share * result.candidate.children:
            result.failed = result.failed or "takes more memory than the limit leaves it"
        if not done.failed:
            result.speeds.append(done.speed)
        return result

    def _share(self, candidate: Candidate, settings: Whisper) -> int | None:
        """Bytes that each child may take, if the candidate fits."""
        asked = {"children": candidate.children, "threads": candidate.pace.threads, "batch": candidate.pace.batch}
        try:
            return plan(settings.model_copy(update=asked), self._cores).child
        except DoesNotFit:
            return None

    def _batches(self, sound: Sample) -> Sequence[int]:
        """Those that the recording can fill; the reference implementation hears one chunk after the other."""
        if self._settings.engine != "faster-whisper":
            return BATCHES[:1]
        return [batch for batch in BATCHES if batch < 2 * sound.chunks]


def rows(cores: int, batches: Iterable[int], fits: Fits) -> Iterable[list[Candidate]]:
    """For each number of children worth a look, the most first, what fits, the smallest batch first.

    A child has as many threads as there are cores for it: with fewer, some would be idle.
    """
    most = next((count for count in range(cores, 0, -1) if fits(Candidate(count, Pace(1, 1)))), 0)
    shares = {most, *(cores * part // 12 for part in (12, 9, 6, 4, 3, 2)), 1}
    for children in sorted((count for count in shares if 0 < count <= most), reverse=True):
        threads = next(n for n in range(cores // children, 0, -1) if fits(Candidate(children, Pace(n, 1))))
        every = [Candidate(children, Pace(threads, batch)) for batch in batches]
        yield [candidate for candidate in every if fits(candidate)]


def explore(of: Iterable[list[Candidate]], measure: Callable[[Candidate], float]) -> None:
    """Measure what may be the fastest, and leave out what can't be.

    A batch is doubled, or halved, as long as that gains something; other numbers of children begin with the batch that
    was best before, and get no further where that is far behind.
    """
    best, start = 0.0, 0
    for row in of:
        place = min(start, len(row) - 1)
        here = {place: measure(row[place])}
        if here[place] > best * _HOPELESS:
            _climb(row, range(place + 1, len(row)), here, measure)
            _climb(row, range(place - 1, -1, -1), here, measure)
        top = max(here, key=lambda one: here[one])
        if here[top] > best:
            best, start = here[top], top


def _climb(
    row: Sequence[Candidate], way: Iterable[int], here: dict[int, float], measure: Callable[[Candidate], float]
) -> None:
    """Go on until two steps have gained nothing, or one has lost much."""
    flat = 0
    for place in way:
        before = max(here.values())
        here[place] = measure(row[place])
        flat = 0 if here[place] > before * _GAIN else flat + 1
        if flat == 2 or here[place] < before * _HOPELESS:
            return


def chosen(results: Sequence[Result]) -> Result:
    """The fastest; of those as fast, as far as one can tell, the one with the least memory.

    Only what was heard as often as the fastest is compared. Raises `NotReady` when none can be used.
    """
    best = max(results, key=lambda result: (len(result.speeds) if result.speed else 0, result.speed))
    if not best.speed:
        raise NotReady(f"no way to cut the worker could be measured; {best.candidate}: {best.failed}")
    near = [one for one in results if len(one.speeds) == len(best.speeds) and one.speed >= best.speed * _SAME]
    return min(near, key=lambda one: one.peak)


def repeated(samples: Samples, seconds: float) -> Samples:
    """So many `seconds` of them."""
    return np.resize(samples, round(seconds * RATE))


def override(settings: Whisper) -> list[str]:
    """The settings that win over what was tuned."""
    names = ("children", "threads", "batch")
    return [f"WHISPER_{name.upper()}={getattr(settings, name)}" for name in names if getattr(settings, name)]
