import pytest
from tests.conftest import ARCHITECTURES

@pytest.mark.parametrize("a", ARCHITECTURES)
def test_x(a, make_model, make_hf, tokenizer):
    m = make_model(a)
    print(a, m.check, m.has_prefix_cache, tokenizer.tokenize("The area of a rectangle's square π is"), len(tokenizer))
def test_y(smol): print(smol.check)
