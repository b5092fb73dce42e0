# box AP 42.9, mask AP 39.5 (arXiv:2102.12122). Weights: Apache-2.0.
_base_ = "./mask-rcnn_pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_large", drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=0.0002 / 1.4))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
