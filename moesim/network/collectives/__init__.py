"""Collective algorithms, one small file each; all take payload, ranks and one link class.

``payload_bytes`` follows the convention of the NCCL tests: the buffer of an all-reduce, the gathered
output of an all-gather, the full input of a reduce-scatter, the message of a broadcast.
"""
