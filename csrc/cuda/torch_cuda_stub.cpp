// What the CUDA library takes from libtorch_cuda.so, to link it where torch has no CUDA. Of this
// only the soname is left in it; what the functions take and return does not matter.
extern "C" {
void aoti_torch_get_current_cuda_stream() {}
}
