# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What all fuzz tests allow: an answer, or one sentence, in time.

`NIM_FUZZ_SEED` changes the seed, and `NIM_FUZZ_CASES` multiplies the number of cases.
"""

import os
import time
import traceback
from collections.abc import Callable
from typing import Any


SEED = int(os.environ.get("NIM_FUZZ_SEED", "0"))
CASES = float(os.environ.get("NIM_FUZZ_CASES", "1"))
SECONDS_PER_CASE = 10
SENTENCES: tuple[type[Exception], ...] = (ValueError, OSError, TypeError)


def attempt(case: str, ask: Callable[[], Any], also: Callable[[Exception], bool] = lambda error: False) -> Any:
    """The answer, or the error if it is one sentence in time, or one that `also` allows."""
    start = time.perf_counter()
    try:
        answer = ask()
    except Exception as error:
        answer = error
    if isinstance(answer, Exception) and not also(answer):
        is_sentence = isinstance(answer, SENTENCES) and "\n" not in str(answer) and 0 < len(str(answer)) < 500
        assert is_sentence, f"{case}: {''.join(traceback.format_exception(answer)[-8:])}"
    assert time.perf_counter() - start < SECONDS_PER_CASE, f"{case} took {time.perf_counter() - start:.0f} seconds"
    return answer
