"""Shipped configurations of published networks: as large as the papers and their code say, and good for any series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gluonts.torch.model.deepar import DeepAREstimator
from small_forecasts import write_series
from torch import nn

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.forecasting.features import Features
from proxscore.forecasting.networks import plan
from proxscore.forecasting.task import ForecastingConfig

PRESETS = ("deepar", "tft", "patchtst", "dlinear", "tide", "koopa")


def task(config: Config) -> ForecastingConfig:
    assert isinstance(config.task, ForecastingConfig)
    return config.task


def within(preset: str, horizon: int, context: int, frequency: str = "h") -> Any:
    """The network within, of weights that are not trained."""
    model = task(configuration.load(preset)).model
    settings: dict[str, Any] = {"frequency": frequency, "features": Features(), "likelihood": model.likelihood}
    return plan(model.name, model.kwargs, horizon=horizon, context=context, **settings).make()


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_dlinear_is_the_papers_once_for_the_location_and_once_for_the_scale() -> None:
    """Zeng et al., table 8: 139.7 thousand weights with a context of 96 and a horizon of 720."""
    net = within("dlinear", 720, 96)
    assert weights(net.linear_seasonal) + weights(net.linear_trend) == 2 * 139_680
    assert weights(net) == 2 * 139_680 + 3 * (2 + 1)


@pytest.mark.parametrize(("context", "words"), [(336, 42), (512, 64)])
def test_patchtst_sees_as_many_words_as_its_names_say(context: int, words: int) -> None:
    net = within("patchtst", 96, context)
    assert net.patch_num == words
    assert [(each.self_attn.num_heads, each.linear1.out_features) for each in net.encoder.layers] == 3 * [(4, 128)]


def test_deepar_is_that_of_gluonts_by_default() -> None:
    theirs: Any = DeepAREstimator(freq="h", prediction_length=24).create_lightning_module().model
    net = within("deepar", 24, 24)
    assert str(net) == str(theirs)
    assert weights(net) == weights(theirs)


def test_koopa_has_the_weights_of_the_authors() -> None:
    """thuml/Koopa with its defaults and one series: four networks of 96, 48 or 128 to 64 to 128 or 48, and three operators."""
    encoders = (96 + 1) * 64 + (64 + 1) * 128 + (48 + 1) * 64 + (64 + 1) * 128
    decoders = 2 * ((128 + 1) * 64 + (64 + 1) * 48)
    assert weights(within("koopa", 48, 96).point) == encoders + decoders + 3 * 128**2 == 97_888


def test_tide_has_the_widths_of_the_authors() -> None:
    """google-research/tide, models.py: one residual block each, of 512 to 512, of 512 to 32 H, and covariates of 64 to 4."""
    net = within("tide", 96, 720)
    widths = {
        name: [(layer.fc[0].out_features, layer.skip.out_features) for layer in blocks]
        for name, blocks in (
            ("covariates", [net.feat_proj.proj]),
            ("encoder", net.dense_encoder.encoder),
            ("decoder", net.dense_decoder.decoder),
        )
    }
    assert widths == {"covariates": [(64, 4)], "encoder": [(512, 512)], "decoder": [(512, 32 * 96)]}


def test_the_temporal_fusion_transformer_is_as_wide_as_the_authors_for_electricity() -> None:
    net = within("tft", 24, 168)
    recurrent = [module for module in net.modules() if isinstance(module, nn.LSTM)]
    assert {module.hidden_size for module in recurrent} == {160}
    assert len(recurrent) == 2
    assert (net.d_hidden, net.d_var, net.num_heads) == (160, 160, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_other_series_and_horizons(preset: str, tmp_path: Path) -> None:
    path = write_series(tmp_path / "series.parquet")
    data = f"{{kind: table, path: '{path}', id_columns: [name], test_windows: 2}}"
    built = task(configuration.load(preset, [f"task.data={data}", "task.horizon=12", "task.context=36"])).build()
    assert (built.context, built.config.horizon, built.anchor) == (36, 12, None)
    assert built.data.splits["counts"]["test"] == 4


def test_what_cannot_work_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^task\.model PatchTST with context=4, patch_len=16.*$"):
        within("patchtst", 12, 4)
    with pytest.raises(ConfigError, match=r"^Koopa: context is 1; it must be 2 or more.*$"):
        within("koopa", 12, 1)
