"""The engine OpenVINO: model.xml, on CPUs."""
