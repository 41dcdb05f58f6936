// What `compute-sanitizer --tool racecheck` says of code that is right: the producer and consumer of the PTX manual
// (bar.arrive on one side, bar.sync on the other), which is how persistent attention kernels hand out tiles, and shared
// memory that is read, and written again behind a barrier of all threads.
//
//   nvcc -arch=native -o named_barriers ci/prove/gpu/named_barriers.cu && compute-sanitizer --tool racecheck ./named_barriers
//
// It prints "wrong: 0" and ends with 0 when every thread saw what it should; racecheck reports the box all the same, once
// for each round, and not the tile.
#include <cstdio>

constexpr int kThreads = 256, kBlocks = 4, kRounds = 5;

__device__ void arrive(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }
__device__ void sync(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }

__global__ void handover(int* out) {
    __shared__ int box, tile[kThreads];
    bool const producer = threadIdx.x < 32;
    int const thread = threadIdx.x, block = blockIdx.x, other = (thread + 64) % kThreads;
    tile[thread] = thread;
    __syncthreads();
    if (!producer) { arrive(4); }  // "the box is empty"
    for (int round = 0; round < kRounds; ++round) {
        int const seen = tile[other];
        sync(1);  // all have read before anyone writes
        tile[thread] = thread + round + 1;
        sync(1);
        int const number = round * kBlocks + block;
        int got = number;
        if (producer) {
            sync(4);
            if (thread == 0) { box = number; }
            arrive(5);  // "the box is full"
        } else {
            sync(5);
            got = box;
            arrive(4);
        }
        out[(block * kRounds + round) * kThreads + thread] = got * 1000 + seen - (other + round);
    }
    if (producer) { sync(4); }
}

int main() {
    static int host[kBlocks * kRounds * kThreads];
    int* device = nullptr;
    if (cudaMalloc(&device, sizeof host) != cudaSuccess) { return 2; }
    handover<<<kBlocks, kThreads>>>(device);
    if (cudaMemcpy(host, device, sizeof host, cudaMemcpyDeviceToHost) != cudaSuccess) { return 2; }
    int wrong = 0;
    for (int i = 0; i < kBlocks * kRounds * kThreads; ++i) {
        int const block = i / (kRounds * kThreads), round = i / kThreads % kRounds;
        wrong += host[i] != (round * kBlocks + block) * 1000;
    }
    std::printf("wrong: %d\n", wrong);
    return wrong != 0;
}
