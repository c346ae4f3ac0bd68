"""OpenVINO exports of decoder-only models, made by optimum-intel in an environment of its own."""
