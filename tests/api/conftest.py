from tests.fakes.threads import one_thread as one_thread
from tests.fakes.threads import seeded as seeded
from tests.fakes.torch_hook import native as native
