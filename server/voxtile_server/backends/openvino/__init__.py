"""The backend `openvino`: model.xml, with the parameters of Triton's C++ backend of that name.

It differs from the C++ backend in three ways. The precision is float32 unless the config says otherwise; OpenVINO's own
default is bfloat16 on a CPU that has it. A batch smaller than `max_batch_size` is neither an error nor padded. An
answer does not depend on the batch that its request came in.
"""
