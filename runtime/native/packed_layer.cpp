// All of a decoder layer that is not attention, as one operation: a step of few tokens has no time for ten.

#include <cstddef>
#include <memory>
#include <vector>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"
#include "groups.hpp"
#include "in_parts.hpp"
#include "packed_matrices.hpp"
#include "packed_product.hpp"
#include "rms_norm.hpp"

using namespace shardyard;

namespace {

// Tokens whose norms a thread takes at a time.
constexpr std::size_t kTokenPortion = 16;

// What a step's tokens are on their way through a layer.
struct Rows {
    std::vector<float> part, normed, inner;

    void make_room(std::size_t tokens, std::size_t hidden, std::size_t width) {
        if (part.size() < tokens * hidden) part.resize(tokens * hidden), normed.resize(tokens * hidden);
        if (inner.size() < tokens * width) inner.resize(tokens * width);
    }
};

// x [tokens, hidden], what attention made of it y [tokens, heads · head_size], and the weights of the norm before the
// MLP → x after the layer: x1 = x + D · y, then x1 + P · (act(G · n) · (U · n)) with n = norm(x1), sums over the group.
// With a fifth matrix Q and its norm's weights the second output is Q · norm of the first: the next layer's qkv.
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
        const std::size_t tokens = shape[0], hidden = shape[1];
        const PackedMatrix &up = known_matrix(matrices_[1]), &gate = known_matrix(matrices_[2]);
        outputs[0].set_shape(shape);
        auto* x = outputs[0].data<float>();
        thread_local Rows rows;
        rows.make_room(tokens, hidden, up.rows);
        product(0, inputs[1].data<const float>(), tokens, rows.part);
        add_and_norm(inputs[0].data<const float>(), rows, tokens, hidden, inputs[2].data<const float>(), x);
        multiply(up, &gate, static_cast<Activation>(activation_), static_cast<Level>(level_), rows.normed.data(),
                 tokens, rows.inner.data());
        product(3, rows.inner.data(), tokens, rows.part);
        const bool next = matrices_.size() > 4;
        add_and_norm(x, rows, tokens, hidden, next ? inputs[3].data<const float>() : nullptr, x);
        if (!next) return true;
        const PackedMatrix& qkv = known_matrix(matrices_[4]);
        outputs[1].set_shape({tokens, qkv.rows});
        multiply(qkv, nullptr, Activation::none, static_cast<Level>(level_), rows.normed.data(), tokens,
                 outputs[1].data<float>());
        return true;
    }

private:
    // A row-parallel product: this rank's part of the sum, then the sum.
    void product(std::size_t index, const float* x, std::size_t tokens, std::vector<float>& y) const {
        const PackedMatrix& matrix = known_matrix(matrices_[index]);
        multiply(matrix, nullptr, Activation::none, static_cast<Level>(level_), x, tokens, y.data());
        if (group_ >= 0) known_group(group_).sum(y.data(), y.data(), tokens * matrix.rows);
    }

    // total = x + rows.part, and with weights its norm in rows.normed. `total` may be x.
    void add_and_norm(const float* x, Rows& rows, std::size_t tokens, std::size_t hidden, const float* weights,
                      float* total) const {
        in_parts(tokens, kTokenPortion, [&](std::size_t first, std::size_t last) {
            for (std::size_t t = first; t < last; ++t) {
                float* to = total + t * hidden;
                const float *from = x + t * hidden, *part = rows.part.data() + t * hidden;
                for (std::size_t k = 0; k < hidden; ++k) to[k] = from[k] + part[k];
                if (weights) rms_norm(to, weights, hidden, static_cast<float>(epsilon_), rows.normed.data() + t * hidden);
            }
        });
    }

    std::vector<std::int64_t> matrices_;
    std::int64_t activation_ = 0, level_ = 0, group_ = -1;
    double epsilon_ = 0;
};

}  // namespace

ov::Extension::Ptr shardyard::packed_layer_extension() { return std::make_shared<ov::OpExtension<PackedLayer>>(); }
