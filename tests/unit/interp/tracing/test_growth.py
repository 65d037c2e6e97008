"""Memory does not grow with the number of prompts that a process traces."""

from pathlib import Path

import pytest

from interp.config import TraceConfig
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.tracing.trace import trace_rules

PAGE, MEBI = 4096, 2**20
STATM = Path("/proc/self/statm")


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.skipif(not STATM.is_file(), reason="needs /proc")
def test_two_hundred_prompts_take_the_memory_of_fifty(
    tiny_llama: LanguageModel, rule: Rule, tmp_path: Path
) -> None:
    rules = [rule.model_copy(update={"id": f"square-{i}"}) for i in range(70)]
    taken: list[int] = []

    def note(prompts: float) -> None:
        taken.append(int(STATM.read_text().split()[1]) * PAGE)

    config = TraceConfig(
        samples=4, positions=("subject_last", "last"), answer="greedy", answer_tokens=2
    )
    skipped = trace_rules(tiny_llama, rules, config, tmp_path, advance=note)
    assert not skipped and len(list(tmp_path.glob("*.nc"))) == 210
    quarter = len(taken) // 4
    assert max(taken[quarter:]) - max(taken[:quarter]) < 20 * MEBI
