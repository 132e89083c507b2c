"""Whatever is wrong, the answer is exit code 0, 1 or 2 and one line that names it, in a moment.

The quick suite tries 16 calls of each kind, the slow one 60, always the same. TRANSEPT_CASES=4000 tries that many calls
of each kind, others than the suite's, and -s says how they were answered.
"""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.robust.wrong_values import KINDS, Answer, Call, Ground, ask, faults

ASKED = os.environ.get("TRANSEPT_CASES")
CASES = [int(ASKED)] if ASKED else [16, pytest.param(60, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.make(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_a_sentence(ground: Ground, kind: str, cases: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ground.root)
    codes: Counter[int] = Counter()
    wrong: list[str] = []  # all of them, not the first alone

    @settings(
        max_examples=cases,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(st.data())
    def each(data: st.DataObject) -> None:
        call = KINDS[kind](ground, data.draw)
        answer = ask(call)
        codes[answer.code] += 1
        if found := faults(call, answer):
            wrong.append(f"{found}: {answer}, {call}")

    each()
    print(f"{kind}: {codes.total()} calls by exit code {dict(sorted(codes.items()))}, {len(wrong)} no answer")
    assert wrong == [], "\n".join(wrong)


def test_what_counts_as_no_answer():
    """The judge itself: a sound call has no faults, and an answer that names something else has one."""
    words = Call(["info", "xcit_nano_12_p8_224"], ["page.yaml"])
    assert faults(words, ask(words)) == []
    for line, fault in {
        "transept: seed=x is no number": "names nothing of it",
        "transept: unexpected KeyError: page.yaml; run again with --debug for the traceback": "unexpected",
        f"transept: page.yaml {'x' * 300}": "310 characters",
        "page.yaml": "no line",
    }.items():
        assert faults(words, Answer(1, line, 0.1)) == [fault]
    assert faults(words, Answer(3, "transept: page.yaml", 6.0)) == ["exit code 3", "6.0 seconds"]
