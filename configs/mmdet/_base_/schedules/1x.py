# Boxes and masks for 12 epochs at one scale, 8 GPUs with 2 images: 500 steps of warm-up, rate / 10 after epochs 8 and
# 11. Optimizer of PVT (arXiv:2102.12122): AdamW that decays everything.
_base_ = ["mmdet::_base_/datasets/coco_instance.py", "mmdet::_base_/schedules/schedule_1x.py", "../runtime.py"]
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=0.0002, weight_decay=0.0001))
