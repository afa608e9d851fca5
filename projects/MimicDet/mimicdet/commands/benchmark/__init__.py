"""Time, memory and size of MimicDet beside Detectron2's detectors: what tools/benchmark.py runs."""
