"""Chooses the modules that get an adapter, counts its parameters, and attaches it with peft.

peft ignores names in a list that match no module: the usual q_proj, k_proj, v_proj, o_proj adapts only a third of
Phi-3's attention, whose projections are fused. So names are checked against the loaded model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from aegis.errors import UsageError
from aegis.messages import phrase
from aegis.model.families import PROVEN

ALL_LINEAR = "all-linear"
"""peft's word for every linear module except the LM head."""
_ATTENTION = tuple(dict.fromkeys(family.targets for family in PROVEN.values()))


@dataclass(frozen=True)
class Coverage:
    """The modules of one target name, and the adapter's parameters on them."""

    target: str
    modules: int
    in_features: int
    out_features: int
    parameters: int

    def explain(self) -> str:
        """Return it as one line of text."""
        return phrase(
            "lora.coverage",
            target=self.target,
            modules=self.modules,
            in_features=self.in_features,
            out_features=self.out_features,
            parameters=self.parameters,
        )


def resolve_targets(model: nn.Module, configured: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the module names to adapt: the configured ones, or this architecture's attention projections.

    `ALL_LINEAR` alone means every linear module except the LM head.

    Raises:
        UsageError: a configured name matches no linear module; the message lists the model's names.
    """
    names = _linear_names(model)
    if tuple(configured) == (ALL_LINEAR,):
        return tuple(sorted(names))
    if configured:
        missing = [target for target in configured if target not in names]
        if missing:
            raise UsageError("lora.no_module", missing=", ".join(missing), names=", ".join(sorted(names)))
        return tuple(configured)
    for fitting in _ATTENTION:
        if all(target in names for target in fitting):
            return fitting
    raise UsageError("lora.unknown_projections", names=", ".join(sorted(names)))


def adapted_weights(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the weights that an adapter on `targets` would change; the model may be on the meta device."""
    return [f"{name}.weight" for name, _ in _linear_modules(model) if name.rpartition(".")[2] in targets]


def coverage(model: nn.Module, targets: Sequence[str], rank: int) -> list[Coverage]:
    """Count the parameters of an adapter of `rank` on `targets`; the model may be on the meta device."""
    rows = []
    for target in targets:
        found = [module for name, module in _linear_modules(model) if name.rpartition(".")[2] == target]
        rows.append(
            Coverage(
                target,
                len(found),
                found[0].in_features,
                found[0].out_features,
                sum(rank * (module.in_features + module.out_features) for module in found),
            )
        )
    return rows


def attach_lora(
    model: Any,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    base_name: str,
    revision: str | None,
) -> Any:
    """Wrap `model` with a trainable float32 adapter.

    Returns:
        The peft model; its saved config has `base_name` and `revision`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
        revision=revision,
    )
    wrapped = get_peft_model(model, config)
    # peft would write the folder that the base was loaded from; users expect the name they gave
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    return wrapped


def _linear_modules(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    # bitsandbytes' Linear4bit is an nn.Linear with the real in_features and out_features
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]


def _linear_names(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, _ in _linear_modules(model)}
