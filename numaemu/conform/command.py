"""numaemu conform: play what was recorded on a real Linux, and say whether the emulator agrees.

One case is reported group by group, several as a table with a line for each. The results of all cases that the project
keeps also go into a page of the docs (--markdown).
"""

import json
import pathlib
import time
from dataclasses import dataclass, field

from numaemu import errors
from numaemu.conform import judge
from numaemu.conform.calibrate import replay
from numaemu.conform.case_file import case_name, find_case, kept_cases, read_case
from numaemu.conform.replay import NotSupported

SHOWN = 5  # disagreements of one group
DONE, DISAGREES, NOT_SUPPORTED = 0, 1, 3  # exit statuses; 2 is wrong usage
AGREES, DIFFERS, CANNOT = "agrees", "differs", "not supported"
GENERATED = "<!-- made by `numaemu conform --all --markdown`; do not edit -->"


@dataclass
class Outcome:
    """What became of one case, played once or several times."""

    name: str
    case: dict
    agreed: list = field(default_factory=list)  # of each time: True or False
    not_supported: str = ""
    failures: list = field(default_factory=list)  # of the first time that disagreed, a line each
    checks: int = 0
    seconds: float = 0.0  # all times together
    verdict: judge.Verdict | None = None  # of the last time
    observed: dict | None = None

    @property
    def result(self):
        """One of AGREES, DIFFERS, CANNOT: it agrees if it has done so every time."""
        if self.not_supported:
            return CANNOT
        return AGREES if all(self.agreed) else DIFFERS

    @property
    def reason(self):
        """Why it does not agree, in a line; "" if it does."""
        if not self.failures:
            return self.not_supported
        more = len(self.failures) - 1
        return self.failures[0] + (f" (and {more} more)" if more else "")

    def to_dict(self):
        """The outcome for JSON."""
        return {
            "case": self.name,
            "result": self.result,
            "agreed": sum(self.agreed),
            "played": len(self.agreed),
            "reason": self.reason,
            "failures": self.failures,
            "checks": self.checks,
            "seconds": round(self.seconds, 1),
        }


# -- playing -------------------------------------------------------------------------------------------------


def play(name, case, times=1):
    """Play a case so many times and judge it each time: its Outcome."""
    outcome = Outcome(name, case)
    start = time.perf_counter()
    for _ in range(times):
        try:
            outcome.observed = replay(case)
        except NotSupported as error:
            outcome.not_supported = error.op
            break
        except (errors.MachineCheck, errors.KernelBug, errors.OutOfMemory, TimeoutError) as error:
            verdict = judge.Verdict()
            verdict.check("steps", False, "the machine", f"dead ({' '.join(str(error).split())})", "alive")
        else:
            verdict = judge.judge(case, outcome.observed)
        outcome.verdict = verdict
        outcome.checks = sum(verdict.checks.values())
        outcome.agreed.append(verdict.agrees)
        outcome.failures = outcome.failures or [line for lines in verdict.failures.values() for line in lines]
    outcome.seconds = time.perf_counter() - start
    return outcome


# -- reports -------------------------------------------------------------------------------------------------


def table(verdict):
    """A line for each group with checks, then its first disagreements."""
    lines = [f"{'group':<12}{'checks':>8}{'agree':>8}{'differ':>8}"]
    for group in judge.GROUPS:
        checks, failures = verdict.checks[group], verdict.failures[group]
        if checks:
            lines.append(f"{group:<12}{checks:>8}{checks - len(failures):>8}{len(failures):>8}")
            lines += [f"    {failure}" for failure in failures[:SHOWN]]
            if len(failures) > SHOWN:
                lines.append(f"    … and {len(failures) - SHOWN} more")
    return "\n".join(lines)


def tally(outcomes):
    """How many cases agree, differ and cannot be played: a line."""
    results = [outcome.result for outcome in outcomes]
    numbers = {result: results.count(result) for result in (AGREES, DIFFERS, CANNOT)}
    verbs = {AGREES: "agree", DIFFERS: "differ" if numbers[DIFFERS] != 1 else "differs", CANNOT: "not supported"}
    parts = [f"{number} {verbs[result]}" for result, number in numbers.items() if number or result == AGREES]
    return f"of {len(outcomes)} cases " + ", ".join(parts)


def row(outcome, width):
    """The line of one of several cases."""
    often = f" {sum(outcome.agreed)}/{len(outcome.agreed)}" if len(outcome.agreed) > 1 else ""
    line = f"{outcome.name:<{width}}  {outcome.result + often:<14}{outcome.seconds:>8.1f}  {outcome.reason}"
    return line.rstrip()


def markdown(outcomes):
    """The page of results: what was recorded, each case with its result, and what differs."""
    kernels = sorted({str(outcome.case.get("kernel", "Linux")) for outcome in outcomes})
    lines = [
        GENERATED,
        "",
        "# Results of the recorded cases",
        "",
        f"Recorded on {'; '.join(kernels)}. {tally(outcomes).capitalize()}.",
        "",
    ]
    lines += ["| case | what it is about | machine | result | checks | what differs first, or is missing |"]
    lines += ["| --- | --- | --- | --- | ---: | --- |"]
    for outcome in outcomes:
        machine = outcome.case["machine"].get("id", "")
        cells = (
            outcome.name,
            outcome.case.get("note", ""),
            machine,
            outcome.result,
            outcome.checks or "",
            outcome.reason,
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_json(path, answer):
    if path:
        pathlib.Path(path).write_text(json.dumps(answer, indent=1) + "\n", "utf-8")


# -- the command ---------------------------------------------------------------------------------------------


def chosen(paths, every):
    """[(name, case)] of the files that are asked for; all are read before the first is played."""
    if every:
        paths = kept_cases()
        if not paths:
            raise errors.ConfigError(
                "conform --all: this installation has no recorded cases; they come with the sources"
            )
    cases = [(find_case(path), read_case(find_case(path))) for path in paths]
    return [(case.get("name", case_name(path)), case) for path, case in cases]


def play_one(name, case, times, json_path):
    """Play one case and print its groups; its Outcome. The JSON holds what was observed, in the recorded shape."""
    outcome = play(name, case, times)
    if outcome.result == CANNOT:
        print(f"not supported: {outcome.not_supported}")
        write_json(json_path, {"not_supported": outcome.not_supported})
        return outcome
    write_json(json_path, {"observed": outcome.observed})
    print(table(outcome.verdict))
    often = f" ({sum(outcome.agreed)} of {times} times)" if times > 1 else ""
    print(
        f"{name}: {outcome.result if outcome.result == AGREES else 'disagrees'}{often} with {case.get('kernel', 'Linux')}"
    )
    return outcome


def play_many(cases, times, json_path, say):
    """Play cases one after another and print a line as each ends; their Outcomes. The JSON holds the table."""
    width, outcomes = max(len(name) for name, _ in cases), []
    print(f"{'case':<{width}}  {'result':<14}{'seconds':>8}  what differs first, or is missing", flush=True)
    for number, (name, case) in enumerate(cases, 1):
        say(f"{number} of {len(cases)}: {name}")
        outcomes.append(play(name, case, times))
        print(row(outcomes[-1], width), flush=True)
        write_json(json_path, {"cases": [outcome.to_dict() for outcome in outcomes]})
    print(tally(outcomes))
    return outcomes


def main(paths, json_path=None, every=False, times=1, markdown_path=None, say=lambda text: None):
    """Play case files and print how they compare.

    The exit status: 1 if one disagrees, 3 if none could be played, else 0. `say` is told what goes on.
    """
    cases = chosen(paths, every)
    if len(cases) == 1 and not every:
        ((name, case),) = cases
        say(name)
        outcomes = [play_one(name, case, times, json_path)]
    else:
        outcomes = play_many(cases, times, json_path, say)
    if markdown_path:
        pathlib.Path(markdown_path).write_text(markdown(outcomes), "utf-8")
    results = {outcome.result for outcome in outcomes}
    return DISAGREES if DIFFERS in results else NOT_SUPPORTED if results == {CANNOT} else DONE
