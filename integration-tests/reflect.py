"""Asks a coordinator for a job's status through gRPC reflection alone: no .proto file, no generated code.

usage: reflect.py https://HOST:PORT JOB FOLDER (with ca.pem, cert.pem, key.pem)
"""
import pathlib
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ca, cert, key = ((pathlib.Path(sys.argv[3]) / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem"))
channel = grpc.secure_channel(sys.argv[1].removeprefix("https://"), grpc.ssl_channel_credentials(ca, key, cert))
database = ProtoReflectionDescriptorDatabase(channel)
assert "toroid.v1.JobService" in database.get_services(), list(database.get_services())
pool = DescriptorPool(database)
method = pool.FindServiceByName("toroid.v1.JobService").FindMethodByName("GetJob")
request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
call = channel.unary_unary("/toroid.v1.JobService/GetJob", request.SerializeToString, response.FromString)
print(call(request(job_id=sys.argv[2])))
