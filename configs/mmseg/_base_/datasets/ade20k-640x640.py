# ADE20K in crops of 640 x 640, 8 GPUs with 2 images.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/datasets/ade20k_640x640.py"
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
