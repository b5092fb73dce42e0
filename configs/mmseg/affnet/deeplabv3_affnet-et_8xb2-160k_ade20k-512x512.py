# mIoU 33.0, 2.2 M parameters (arXiv:2307.14008). Weights: MIT.
# The authors publish figures and no settings: the optimizer is that of Swin's UPerNet (arXiv:2103.14030). Differs:
# their head ends in a 1x1 convolution, that of mmsegmentation in a 3x3 one with 2.6 M parameters more.
_base_ = ["../_base_/models/deeplabv3.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(backbone=dict(model="affnet_et"), data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]))
