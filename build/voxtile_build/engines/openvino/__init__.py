"""The engine OpenVINO: model.xml, on CPUs.

OpenVINO and NNCF report their imports and conversions to Google Analytics. Both send nothing where the package that
sends is missing, so it is hidden from them here, before any module of this folder imports one of the two.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: the import fails
