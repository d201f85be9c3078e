// All-reduce as an operation of the OpenVINO CPU plugin, for tensor-parallel ranks on one host, and the C interface to
// the groups that it sums over.

#include <array>
#include <cstdint>
#include <memory>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"
#include "groups.hpp"

namespace {

using shardyard::Group;
constexpr int kMaxGroups = 64;

std::array<Group, kMaxGroups> groups;

class AllReduce : public ov::op::Op {
public:
    OPENVINO_OP("AllReduce", "shardyard");

    AllReduce() = default;
    AllReduce(const ov::Output<ov::Node>& x, std::int64_t group) : Op({x}), group_(group) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        set_output_type(0, get_input_element_type(0), get_input_partial_shape(0));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<AllReduce>(inputs.at(0), group_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("group", group_);
        return true;
    }

    bool has_evaluate() const override { return get_input_element_type(0) == ov::element::f32; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        outputs[0].set_shape(inputs[0].get_shape());
        groups[group_].sum(inputs[0].data<const float>(), outputs[0].data<float>(), inputs[0].get_size());
        return true;
    }

private:
    std::int64_t group_ = 0;
};

// Runs `work` for callers that know no C++ exceptions.
template <typename Work>
int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::exception&) {
        return -1;
    }
}

}  // namespace

Group& shardyard::known_group(std::int64_t number) { return groups.at(number); }

ov::Extension::Ptr shardyard::all_reduce_extension() { return std::make_shared<ov::OpExtension<AllReduce>>(); }

extern "C" {

std::size_t shardyard_window_bytes(int size, std::size_t slot_bytes) { return sizeof(shardyard::Window) + 2 * size * slot_bytes; }

int shardyard_max_ranks() { return shardyard::kMaxRanks; }

int shardyard_max_groups() { return kMaxGroups; }

void shardyard_join(int group, void* memory, int rank, int size, std::size_t slot_bytes) {
    groups[group].join(memory, rank, size, slot_bytes);
}

void shardyard_abort(int group) { groups[group].abort(); }

// 0; -1 when the group was aborted or a peer is gone.
int shardyard_sum(int group, const float* in, float* out, std::size_t count) {
    return guarded([&] { groups[group].sum(in, out, count); });
}

// `out` holds `count` values of each rank; otherwise as shardyard_sum.
int shardyard_gather(int group, const float* in, float* out, std::size_t count) {
    return guarded([&] { groups[group].gather(in, out, count); });
}

// Fills four numbers: calls, bytes, nanoseconds of waiting, nanoseconds of moving.
void shardyard_counters(int group, std::uint64_t* four) {
    const shardyard::Counters& counters = groups[group].counters();
    four[0] = counters.calls, four[1] = counters.bytes, four[2] = counters.waiting_ns, four[3] = counters.moving_ns;
}
}
