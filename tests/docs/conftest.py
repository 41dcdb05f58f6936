from tests.fakes.torch_hook import native as native
