"""Write the table of ``executors.md``, with ``explain``: ``python docs/executors_table.py``."""

from __future__ import annotations

from pathlib import Path

import torch

import functional_adamax as fa

PAGE = Path(__file__).resolve().with_name("executors.md")
BEGIN, END = "<!-- docs/executors_table.py begins here -->\n", "<!-- and ends here -->\n"
TRANSFORMS = """
adamax()
adamax(cosine_decay_schedule(0.1, 100))
adamax(derivative_floor=1e-3)
adamax(state_dtype=torch.float64)
adamaxw()
nadamax()
adam()
adam(amsgrad=True)
adamw()
sgd(0.1)
sgd(0.1, momentum=0.9, nesterov=True)
rmsprop()
rmsprop(momentum=0.9, centered=True)
lion()
scale_by_adamax()
scale_by_amsmax()
scale_by_nadamax()
scale_by_adam()
scale_by_rms()
scale_by_lion()
scale_by_sign()
trace(0.9)
ema(0.9)
clip(1.0)
clip_by_global_norm(1.0)
clip_by_block_rms(1.0)
adaptive_grad_clip(0.1)
centralize()
zero_nans()
add_noise(0.01, 0.55)
scale(-0.1)
scale_by_learning_rate(0.1)
scale_by_learning_rate(lambda count: 0.1 * 0.9**count)
add_decayed_weights(0.1)
reduce_on_plateau()
params_ema(0.9)
params_average()
identity()
set_to_zero()
stateless(lambda updates, params: updates)
chain(clip_by_global_norm(1.0), scale_by_adamax(), scale(-0.1))
named_chain(("direction", scale_by_adam()), ("rate", scale(-0.1)))
masked(add_decayed_weights(0.1), {"w": True, "b": False})
partition({"a": adamax(), "b": sgd(0.1)}, {"w": "a", "b": "b"})
freeze({"w": False, "b": True})
multi_steps(adamax(), 4)
apply_if_finite(adamax(), 3)
conditionally(clip(1.0), lambda count: count < 100)
cautious(adamax())
lookahead(adamax(), 6, 0.5)
lookahead(adamax(), 6, 0.5, reset_state=True)
sam(adamax())
schedule_free(sgd(0.1), 0.1)
inject_hyperparams(adamax)(0.1)
"""


def table() -> str:
    """Who takes the step of each transform, and why not a faster executor."""
    names = {"torch": torch, **{name: getattr(fa, name) for name in fa.__all__}}
    rows = ["| Transform | Executor | Why not a faster one | In bfloat16 |", "|---|---|---|---|"]
    for code in TRANSFORMS.split("\n")[1:-1]:
        tx = eval(code, names)
        [(executor, why)], halves = (kinds(tx, dtype) for dtype in (torch.float32, torch.bfloat16))
        own = (
            ""
            if halves == [(executor, why)]
            else "; ".join(": ".join(filter(None, x)) for x in halves)
        )
        rows.append(f"| `{code}` | {executor} | {why or ''} | {own} |")
    return "\n".join(rows).replace("  |", " |") + "\n"


def kinds(tx: fa.GradientTransformation, dtype: torch.dtype) -> list[tuple[str, str | None]]:
    """The executors of the leaves of a tree, and why not faster ones."""
    params = {"w": torch.zeros(20, 30, dtype=dtype), "b": torch.zeros(30, dtype=dtype)}
    return sorted({x[1:] for x in fa.explain(tx, params).leaves})


def written(page: str) -> str:
    """The page, with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
