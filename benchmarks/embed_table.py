"""The figures of embed.py: medians over rounds, ratios, and the table to read."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from timeline import Pace

MANY = 5000  # images, from which on start-up counts too


@dataclass
class Runner:
    """What was measured of one way to embed; ``fault`` says why there is nothing.

    ``cosines`` are those of a sample of its embeddings with the exact ones.
    """

    title: str
    precision: str
    paces: list[Pace] = field(default_factory=list)
    cosines: np.ndarray | None = None
    fault: str = ""

    def middle(self, of: Callable[[Pace], float]) -> float:
        """The median over rounds."""
        return statistics.median(of(pace) for pace in self.paces)

    @property
    def rate(self) -> float:
        """Images/s of the steady part, the median."""
        return self.middle(lambda pace: pace.rate)

    @property
    def seconds(self) -> float:
        """Seconds for ``MANY`` images with the start-up, the median."""
        return self.middle(lambda pace: pace.seconds(MANY))


@dataclass(frozen=True)
class Limits:
    """Images/s: our forward alone, the plain fp32 forward alone, decoding alone."""

    forward: float
    eager: float
    decode: float
    on_gpu: bool

    @property
    def both(self) -> float:
        """No pipeline is faster.

        On a CPU the two share the cores, so their times add up; a GPU runs beside
        them, so the slower of the two decides.
        """
        if self.on_gpu:
            return min(self.forward, self.decode)
        return 1 / (1 / self.forward + 1 / self.decode)


def limits(rounds: Sequence[dict[str, float]], on_gpu: bool) -> Limits:
    """The medians of what embed_limits.py said."""
    middle = {
        name: statistics.median(said[name] for said in rounds)
        for name in ("forward", "eager", "decode")
    }
    return Limits(**middle, on_gpu=on_gpu)


def cosines(vectors: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> np.ndarray:
    """Of each photo in ``exact``, the cosine of its vector with the exact one.

    Raises:
        ValueError: the vector of a photo is missing, or of another width.
    """
    lost = sorted(exact.keys() - vectors.keys())
    if lost:
        raise ValueError(f"no embedding of {len(lost)} photos, such as {lost[0]}")
    pairs = [(vectors[name].astype(float), exact[name].astype(float)) for name in exact]
    return np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])


def table(
    images: tuple[int, int], ours: Runner, peers: Sequence[Runner], limit: Limits
) -> str:
    """The table of one network and what it says in words.

    ``images`` is how many we embedded, and how many each of the peers.
    """
    heads = ["", "images/s", "min-max", "loaded s", "start-up s", "wall s"]
    heads += [f"{MANY:,} images s"]
    heads += ["ours: times its speed", "with start-up", "of the limit"]
    heads += ["cosine mean", "worst"]
    lines = [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(_line(runner, ours, limit) for runner in (ours, *peers)),
    ]
    kind = "min(F, D)" if limit.on_gpu else "1/(1/F + 1/D)"
    mine, theirs = images
    more = f", of which the others embed the first {theirs:,}" if mine > theirs else ""
    said = (
        f"{mine:,} photos{more}. Alone: our forward F {limit.forward:,.1f} images/s, a "
        f"plain fp32 forward {limit.eager:,.1f}, decoding D {limit.decode:,.0f}; the "
        f"limit {kind} is {limit.both:,.1f}."
    )
    return "\n".join(lines) + f"\n\n{said} {_verdict(ours, peers, limit)}"


def _line(runner: Runner, ours: Runner, limit: Limits) -> str:
    name = f"| {runner.title}, {runner.precision} | "
    if not runner.paces:
        return f"{name}{runner.fault} |" + " |" * 10
    rates = [pace.rate for pace in runner.paces]
    cells = [
        f"{runner.rate:,.1f}",
        f"{min(rates):,.1f}-{max(rates):,.1f}",
        f"{runner.middle(lambda pace: pace.loaded):.1f}",
        f"{runner.middle(lambda pace: pace.start_up):.1f}",
        f"{runner.middle(lambda pace: pace.wall):.1f}",
        f"{runner.seconds:,.0f}",
        f"{ours.rate / runner.rate:.2f}" if ours.paces else "",
        f"{runner.seconds / ours.seconds:.2f}" if ours.paces else "",
        f"{runner.rate / limit.both:.2f}",
        *_alike(runner),
    ]
    # a fault after some rounds is told as well
    return name + " | ".join(cells) + f" |{runner.fault and ' ' + runner.fault}"


def _alike(runner: Runner) -> list[str]:
    if runner.cosines is None:
        return ["", ""]
    return [f"{runner.cosines.mean():.5f}", f"{runner.cosines.min():.5f}"]


def _verdict(ours: Runner, peers: Sequence[Runner], limit: Limits) -> str:
    exact = [peer for peer in peers if peer.paces and peer.precision == "fp32"]
    if not (ours.paces and exact):
        return "Nothing to compare."
    fastest = max(exact, key=lambda peer: peer.rate)
    soonest = min(exact, key=lambda peer: peer.seconds)
    return (
        f"Ours reaches {ours.rate / limit.both:.2f} of it, and is "
        f"{ours.rate / fastest.rate:.2f} times as fast as the best fp32 peer "
        f"({fastest.title}), start-up apart; with it, at {MANY:,} images, "
        f"{soonest.seconds / ours.seconds:.2f} times ({soonest.title})."
    )
