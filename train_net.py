#!/usr/bin/env python3
"""
Train or evaluate MimicDet from a config file.

    python train_net.py --config-file configs/COCO-Detection/mimicdet_R_50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS model_final.pth
    python train_net.py --config-file CONFIG --resume
    torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
"""

from mimicdet.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
