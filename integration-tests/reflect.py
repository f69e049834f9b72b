"""Asks a coordinator for a job's status through gRPC reflection alone: no .proto file, no generated code.

usage: reflect.py http://HOST:PORT JOB
"""
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1].removeprefix("http://"))
database = ProtoReflectionDescriptorDatabase(channel)
assert "toroid.v1.JobService" in database.get_services(), list(database.get_services())
pool = DescriptorPool(database)
method = pool.FindServiceByName("toroid.v1.JobService").FindMethodByName("GetJob")
request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
call = channel.unary_unary("/toroid.v1.JobService/GetJob", request.SerializeToString, response.FromString)
print(call(request(job_id=sys.argv[2])))
