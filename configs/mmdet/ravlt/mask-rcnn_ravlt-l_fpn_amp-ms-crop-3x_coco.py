# box AP 53.6, mask AP 47.3 (arXiv:2411.07635). Weights: MIT.
_base_ = "./mask-rcnn_ravlt-s_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="ravlt_l", drop_path_rate=0.55))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
