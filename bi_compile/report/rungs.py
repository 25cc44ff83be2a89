"""Which rungs of the promise hold for a compiled model, judged by its verdicts alone."""

from dataclasses import dataclass

from bi_compile.report import MIXES, Report, Verdict

YES, NO, IF = "yes", "no", "if"


@dataclass(frozen=True)
class Rung:
    """One rung: a sample's bits do not depend on `of`.

    holds: YES, NO, or IF: it hangs on the inputs or the code outside the graph; `why` is that condition.
    """

    letter: str
    name: str
    of: str
    holds: str
    why: str


_RUNGS = {
    "run": "the run",
    "batch": "batch size, position and neighbours",
    "padding": "how long the other sequences are",
    "queries": "how queries are cut: full forward, chunks, decode",
    "graph": "the graph: dynamic or static, compiled or eager",
}


def rungs(report: Report) -> list[Rung]:
    """R, B, P, Q and G, in this order."""
    return [Rung(name[0].upper(), name, of, *_judge(name, report)) for name, of in _RUNGS.items()]


def _judge(rung: str, report: Report) -> tuple[str, str]:
    if report.error:
        return NO, "the compilation stopped"
    # A known mixture has a fixed order like everything else: the run and the graph do not show in it.
    refused = [v for v in report.refused if v.kind != MIXES or rung not in ("run", "graph")]
    if refused:
        return NO, f"nothing is promised for {_names(refused)}"
    if report.leaks:
        return NO, report.leaks[0].reason
    if not report.graphs:
        return NO, "no graph was compiled, so nothing is known"
    if rung in ("run", "graph"):
        return YES, "every op has one order of arithmetic"
    if report.unknown:
        return IF, f"{_names(report.unknown)} keeps samples apart, which nobody can say"
    if report.breaks:
        return IF, "what runs outside graphs keeps samples apart"
    if report.questions and rung == "batch":
        return IF, f"only among {report.among}"
    return {"padding": _padding, "queries": _queries}.get(rung, _always)(report)


def _names(verdicts: list[Verdict]) -> str:
    return ", ".join(dict.fromkeys(v.op for v in verdicts))


def _always(report: Report) -> tuple[str, str]:
    return YES, "every op has one order of arithmetic"


def _padding(report: Report) -> tuple[str, str]:
    if report.isolated:
        return NO, f"{report.isolated[0].op} runs sample by sample, with the padding in it"
    return IF, "padding is on the right and the model masks it"


def _queries(report: Report) -> tuple[str, str]:
    if not report.canonical["bi_compile.attention"]:
        return IF, "the model handles each position by itself: no attention op is in the graphs"
    if report.isolated:
        return NO, f"{report.isolated[0].op} runs on the whole sample"
    return IF, "the attention is causal and the cache holds the same keys and values"
