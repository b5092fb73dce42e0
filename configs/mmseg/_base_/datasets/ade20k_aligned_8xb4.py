# As ade20k_aligned.py with 4 images on each of 8 GPUs.
_base_ = "./ade20k_aligned.py"
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
