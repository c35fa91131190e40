"""What is counted of an optimizer's steps, and its state: how it is saved, copied, loaded and carried on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from proxscore.inference.assembled import AssembledOptimizer
from proxscore.inference.convergence import KEY
from proxscore.inference.parts.shards import Shards
from proxscore.inference.undecided import Undecided


class ResumableOptimizer(AssembledOptimizer):
    """:class:`proxscore.inference.ProximalScore` between its steps: it can be saved, copied and loaded, and loses no count.

    Between a draw loop and its step there are scores that no step has used, and perhaps a draw in the weights: neither is part
    of a state. After a step on an accelerator, the device may know what the host does not (:meth:`settle`).
    """

    _undecided: Undecided | None = None
    _drawing = _scored = False  # whether a draw loop is running, and whether one has left scores for the step

    @property
    def undecided(self) -> bool:
        """Whether the host does not know yet if the last step was skipped: see :meth:`settle`."""
        return self._undecided is not None

    def settle(self) -> None:
        """Learn from the device what became of the last step, where the host has not waited for that, and count it.

        On an accelerator, the groups' ``skipped`` is that of the step before the last one until then. The next ``step`` and
        ``state_dict`` call it.

        Raises:
            FloatingPointError: ``max_skipped_steps`` steps in a row were skipped, or the posterior has diverged.
        """
        undecided, self._undecided = self._undecided, None
        if undecided is not None and undecided.skipped():
            undecided.take_back(self.param_groups)
            assert undecided.finite is not None
            self._count_skipped(undecided.names, undecided.finite)
        for part in self._all_parts():
            if isinstance(part, Shards):
                part.probes.settle()

    def _count_skipped(self, names: Sequence[str], finite: Tensor) -> None:
        """Count a skipped step, and give up after too many in a row.

        Args:
            finite: whether the gradients of the parameters of these names were.
        """
        for group in self.param_groups:
            group["skipped"] += 1
            group["skipped_in_a_row"] += 1
        if self.param_groups[0]["skipped_in_a_row"] >= self.max_skipped_steps:
            bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
            raise FloatingPointError(
                f"{self.max_skipped_steps} steps in a row had scores that are not finite (first parameter: "
                f"{bad[0] if bad else 'on another rank'}); look for bad inputs, or use a larger initial_precision or "
                "penalty.mean"
            )

    def _holds(self) -> bool:
        """Whether a part has left its draw in the weights."""
        return any(part.hold for part in self._all_parts())

    def _forget(self) -> None:
        """Drop the scores that no step has used."""
        for part in self._all_parts():
            part.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Everything that the optimizer holds, for ``copy.deepcopy`` (of module and optimizer together) and pickle."""
        if self._drawing or self._scored:
            raise RuntimeError("an optimizer is copied after step(), not within or after its draw loop")
        self.settle()
        return {name: value for name, value in self.__dict__.items() if name != "step"}  # that is a scheduler's wrapper

    def state_dict(self) -> dict[str, Any]:
        """The state of every parameter and the settings of every group, as other torch optimizers have them."""
        if self._scored and self._holds():
            raise RuntimeError("state_dict() needs the mean, and the weights are a draw: call step() first")
        self.settle()
        for block in self.blocks():
            block.export(self.state)
        for part in self._all_parts():
            if part.probes is not None:
                part.probes.save(self.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`; scores that no step has used are dropped with the state that it replaces.

        A state of other ``draws`` or ``keep_mean`` is taken over; what these settings add is made from the weights. A draw that
        ``hold_draw`` has left in the weights gives way to the mean, except in weights that were written since (loaded, say).

        Raises:
            ValueError: the state is that of another family, solver or selection; names the parameter.
        """
        if self._scored:
            for part in self._all_parts():
                part.forget_unwritten()
        self._scored = False
        before = {parameter: dict(state) for parameter, state in self.state.items()}
        expected = {parameter: set(state) for parameter, state in self.state.items()}
        for block in self.blocks():  # no export: what is loaded may be the state itself
            expected |= block.names()
        fused = state_dict["param_groups"][0].get("fused", False)
        # Of a fused optimizer of its own torch puts "step" beside the weights, where every look at it would wait for a GPU.
        groups = [
            {key: value for key, value in group.items() if key != "fused"} for group in state_dict["param_groups"]
        ]
        super().load_state_dict({**state_dict, "param_groups": groups})
        self._undecided = None
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        for parameter, keys in expected.items():
            loaded = self.state[parameter]
            for key in (keys - loaded.keys()) & _REPLACEABLE:
                loaded[key] = parameter.detach().clone() if key == "mean" else before[parameter][key]
            for key in (loaded.keys() - keys) & _REPLACEABLE:
                del loaded[key]
            if loaded.keys() - {KEY} != keys - {KEY}:
                raise ValueError(
                    f"the saved state of {names[id(parameter)]} holds {_listed(loaded)}, these settings need "
                    f"{_listed(keys)}: build the optimizer with the family, the solver and the prior's selection "
                    "that it was saved with"
                )
        for block in self.blocks():
            block.load(self.state)
        self._choose_path(fused)
        for group, part in self._grouped_parts():
            if part.probes is not None:
                part.probes.load(self.state, steps_taken(group))


# Names that a loaded state may lack or have too many of: they follow from the weights, or are made in every step.
_REPLACEABLE = {"mean", "curvature", "prior_mean", "square", "step"}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def steps_taken(group: dict[str, Any]) -> int:
    """How many steps of a group were not skipped."""
    return int(group["step"] - group["skipped"])
