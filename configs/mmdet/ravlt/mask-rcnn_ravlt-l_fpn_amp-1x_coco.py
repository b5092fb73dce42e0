# box AP 52.3, mask AP 46.4 (arXiv:2411.07635). Weights: MIT.
_base_ = "./mask-rcnn_ravlt-t_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="ravlt_l", drop_path_rate=0.55))
