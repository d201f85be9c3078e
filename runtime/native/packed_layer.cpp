// All of a decoder layer that is not attention, as one operation: a step of few tokens has no time for ten.

#include <cstddef>
#include <memory>
#include <vector>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"
#include "fused_layer.hpp"
#include "groups.hpp"
#include "packed_matrices.hpp"

using namespace shardyard;

namespace {

// x [tokens, hidden], what attention made of it y [tokens, heads · head_size], and the weights of the norm before the
// MLP → x after the layer (fused_layer.hpp). `matrices`: dense, up, gate and proj. With a fifth one, the next layer's qkv,
// and the weights of the norm before it the second output is the next layer's qkv.
class PackedLayer : public ov::op::Op {
public:
    OPENVINO_OP("PackedLayer", "shardyard");

    PackedLayer() = default;
    PackedLayer(const ov::OutputVector& inputs, const PackedLayer& other)
        : Op(inputs), matrices_(other.matrices_), activation_(other.activation_), level_(other.level_),
          group_(other.group_), epsilon_(other.epsilon_) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        auto shape = get_input_partial_shape(0);
        set_output_type(0, ov::element::f32, shape);
        if (matrices_.size() < 5) return;
        shape[shape.size() - 1] = static_cast<std::int64_t>(known_matrix(matrices_[4]).rows);
        set_output_type(1, ov::element::f32, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<PackedLayer>(inputs, *this);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("matrices", matrices_);
        visitor.on_attribute("activation", activation_);
        visitor.on_attribute("level", level_);
        visitor.on_attribute("group", group_);
        visitor.on_attribute("epsilon", epsilon_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape& shape = inputs[0].get_shape();
        const bool next = matrices_.size() > 4;
        outputs[0].set_shape(shape);
        if (next) outputs[1].set_shape({shape[0], known_matrix(matrices_[4]).rows});
        const auto norm = [&](std::size_t index) { return inputs[2 + index].data<const float>(); };
        const LayerParts parts{known_matrix(matrices_[0]),
                               known_matrix(matrices_[1]),
                               known_matrix(matrices_[2]),
                               known_matrix(matrices_[3]),
                               norm(0),
                               next ? &known_matrix(matrices_[4]) : nullptr,
                               next ? norm(1) : nullptr};
        const LayerForm form{static_cast<Activation>(activation_), static_cast<Level>(level_),
                             group_ < 0 ? nullptr : &known_group(group_), static_cast<float>(epsilon_)};
        run_layer(form, parts, inputs[0].data<const float>(), inputs[1].data<const float>(), shape[0],
                  outputs[0].data<float>(), next ? outputs[1].data<float>() : nullptr);
        return true;
    }

private:
    std::vector<std::int64_t> matrices_;
    std::int64_t activation_ = 0, level_ = 0, group_ = -1;
    double epsilon_ = 0;
};

}  // namespace

ov::Extension::Ptr shardyard::packed_layer_extension() { return std::make_shared<ov::OpExtension<PackedLayer>>(); }
