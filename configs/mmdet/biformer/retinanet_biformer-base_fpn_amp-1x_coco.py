# box AP 47.1 (arXiv:2303.08810). Weights: MIT.
_base_ = "./retinanet_biformer-small_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="biformer_base", drop_path_rate=0.3))
