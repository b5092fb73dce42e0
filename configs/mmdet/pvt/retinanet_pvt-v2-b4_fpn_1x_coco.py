# box AP 46.1 (arXiv:2106.13797). Weights: Apache-2.0.
_base_ = "./retinanet_pvt-v2-b0_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_v2_b4"))
optim_wrapper = dict(optimizer=dict(lr=0.0001 / 1.4))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
