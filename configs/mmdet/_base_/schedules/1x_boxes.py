# As 1x.py for boxes alone, at half the rate.
_base_ = ["mmdet::_base_/datasets/coco_detection.py", "mmdet::_base_/schedules/schedule_1x.py", "../runtime.py"]
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=0.0001, weight_decay=0.0001))
