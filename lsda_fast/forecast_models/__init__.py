"""Forecast models behind one call: the package's own, published ONNX graphs, any Python callable."""

from lsda_fast.forecast_models.base import CallableForecast, ForecastModel, forecast_of, whole_steps
from lsda_fast.forecast_models.named import forecast_model
from lsda_fast.forecast_models.onnx import OnnxForecast
from lsda_fast.forecast_models.package import PackageForecast
from lsda_fast.forecast_models.published import FengWu, Form, Pangu

__all__ = [
    "CallableForecast",
    "FengWu",
    "ForecastModel",
    "Form",
    "OnnxForecast",
    "PackageForecast",
    "Pangu",
    "forecast_model",
    "forecast_of",
    "whole_steps",
]
