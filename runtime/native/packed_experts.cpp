// A mixture of experts as one operation: each expert reads its matrices only if a token goes to it.

#include <cstring>
#include <memory>
#include <vector>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"
#include "packed_matrices.hpp"
#include "packed_product.hpp"

using namespace shardyard;

namespace {

// What an expert reads and makes of the tokens that go to it.
struct Answers {
    std::vector<std::size_t> tokens;
    std::vector<float> shares, rows, inner, results;

    // Finds the tokens whose share is above zero, and gathers their rows of x [.., width].
    void gather(const float* every, std::size_t count, const float* x, std::size_t width) {
        tokens.clear();
        shares.clear();
        for (std::size_t t = 0; t < count; ++t) {
            if (every[t] > 0) {
                tokens.push_back(t);
                shares.push_back(every[t]);
            }
        }
        rows.resize(tokens.size() * width);
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            std::memcpy(rows.data() + i * width, x + tokens[i] * width, width * sizeof(float));
        }
    }

    void add_to(float* y, std::size_t width) const {
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            float* to = y + tokens[i] * width;
            const float* from = results.data() + i * width;
            for (std::size_t k = 0; k < width; ++k) to[k] += shares[i] * from[k];
        }
    }
};

// total [tokens, hidden], x [tokens, hidden], shares [experts, tokens] → total + the sum over the experts of
// share · (act(x · Gᵀ) · (x · Uᵀ)) · Pᵀ. The attribute names U, G and P of each expert.
class PackedExperts : public ov::op::Op {
public:
    OPENVINO_OP("PackedExperts", "shardyard");

    PackedExperts() = default;
    PackedExperts(const ov::OutputVector& inputs, const PackedExperts& other)
        : Op(inputs), matrices_(other.matrices_), activation_(other.activation_), level_(other.level_) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override { set_output_type(0, ov::element::f32, get_input_partial_shape(0)); }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<PackedExperts>(inputs, *this);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("matrices", matrices_);
        visitor.on_attribute("activation", activation_);
        visitor.on_attribute("level", level_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape& shape = inputs[0].get_shape();
        outputs[0].set_shape(shape);
        const auto* x = inputs[1].data<const float>();
        const auto* shares = inputs[2].data<const float>();
        auto* y = outputs[0].data<float>();
        std::memcpy(y, inputs[0].data<const float>(), inputs[0].get_byte_size());
        Answers answers;
        for (std::size_t expert = 0; 3 * expert < matrices_.size(); ++expert) {
            answers.gather(shares + expert * shape[0], shape[0], x, shape[1]);
            if (answers.tokens.empty()) continue;
            answer(expert, answers);
            answers.add_to(y, shape[1]);
        }
        return true;
    }

private:
    void answer(std::size_t expert, Answers& answers) const {
        const PackedMatrix& up = known_matrix(matrices_[3 * expert]);
        const PackedMatrix& gate = known_matrix(matrices_[3 * expert + 1]);
        const PackedMatrix& projection = known_matrix(matrices_[3 * expert + 2]);
        const std::size_t tokens = answers.tokens.size();
        const auto level = static_cast<Level>(level_);
        answers.inner.resize(tokens * up.rows);
        answers.results.resize(tokens * projection.rows);
        multiply(up, &gate, static_cast<Activation>(activation_), level, answers.rows.data(), tokens,
                 answers.inner.data());
        multiply(projection, nullptr, Activation::none, level, answers.inner.data(), tokens, answers.results.data());
    }

    std::vector<std::int64_t> matrices_;
    std::int64_t activation_ = 0, level_ = 0;
};

}  // namespace

ov::Extension::Ptr shardyard::packed_experts_extension() {
    return std::make_shared<ov::OpExtension<PackedExperts>>();
}
