# box AP 55.3, mask AP 47.8, 258 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_large", drop_path_rate=0.6))
# From weights of ImageNet-22k, without mixed precision.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(lr=0.000075))
