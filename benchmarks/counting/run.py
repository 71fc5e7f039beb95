"""How long counting takes: 1,000 draws of `all_methods` on a BERT-base, by formulas, and all of them by attaching.

    python benchmarks/counting/run.py

Weights on the meta device: nothing is downloaded. CPU seconds of this process, one thread.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import transformers

from autopeft import spaces, yaml_file
from autopeft.errors import Refused
from autopeft.training.counter import Counter
from autopeft.training.model import view
from autopeft.training.recipe import count

DRAWS = 1000


def main() -> None:
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))
    model.eval().requires_grad_(False)
    parts = view(model)
    content = yaml_file.read(spaces.shipped()["all_methods"]).content
    space, faults = spaces.read(content, parts.n_layers, list(parts.kinds))
    assert space is not None and not faults
    rng = np.random.default_rng(0)
    draws = [space.draw(rng) for _ in range(DRAWS)]
    counter = Counter(model, parts)
    outcome(counter, space.defaults()[0])  # imports
    start = time.process_time()
    found = [outcome(counter, params) for params in draws]
    ours = time.process_time() - start
    start = time.process_time()
    expected = [outcome(lambda params: count(model, parts, params), params) for params in draws]
    theirs = time.process_time() - start
    different = sum(one != other for one, other in zip(found, expected, strict=False))
    print(f"{DRAWS} counted by formulas: {ours:.2f} CPU s; by attaching: {theirs:.1f} CPU s")
    print(f"different: {different} of {DRAWS}")


def outcome(call: Any, params: Any) -> Any:
    try:
        return call(params)
    except Refused:
        return "refused"


if __name__ == "__main__":
    main()
