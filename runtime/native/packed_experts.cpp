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
    std::size_t expert;
    std::vector<std::size_t> tokens;
    std::vector<float> shares, rows, inner, results;

    // Finds the tokens whose share is above zero.
    Answers(std::size_t number, const float* every, std::size_t count) : expert(number) {
        for (std::size_t t = 0; t < count; ++t) {
            if (every[t] > 0) {
                tokens.push_back(t);
                shares.push_back(every[t]);
            }
        }
    }

    // Returns the tokens' rows of x [count, width]: x itself where all go to this expert.
    const float* gather(const float* x, std::size_t count, std::size_t width) {
        if (tokens.size() == count) return x;
        rows.resize(tokens.size() * width);
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            std::memcpy(rows.data() + i * width, x + tokens[i] * width, width * sizeof(float));
        }
        return rows.data();
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
        std::vector<Answers> chosen;
        for (std::size_t expert = 0; 3 * expert < matrices_.size(); ++expert) {
            chosen.emplace_back(expert, shares + expert * shape[0], shape[0]);
            if (chosen.back().tokens.empty()) chosen.pop_back();
        }
        answer(chosen, x, shape[0], shape[1]);
        for (const Answers& each : chosen) each.add_to(y, shape[1]);
        return true;
    }

private:
    // The branches of all chosen experts are one loop, and what leads back from them another.
    void answer(std::vector<Answers>& chosen, const float* x, std::size_t count, std::size_t width) const {
        std::vector<Task> branches, back;
        for (Answers& each : chosen) {
            const std::int64_t* numbers = matrices_.data() + 3 * each.expert;
            const PackedMatrix &up = known_matrix(numbers[0]), &projection = known_matrix(numbers[2]);
            const std::size_t tokens = each.tokens.size();
            each.inner.resize(tokens * up.rows);
            each.results.resize(tokens * projection.rows);
            branches.push_back(
                {up, &known_matrix(numbers[1]), each.gather(x, count, width), tokens, each.inner.data()});
            back.push_back({projection, nullptr, each.inner.data(), tokens, each.results.data()});
        }
        const auto level = static_cast<Level>(level_);
        multiply_together(branches, static_cast<Activation>(activation_), level);
        multiply_together(back, Activation::none, level);
    }

    std::vector<std::int64_t> matrices_;
    std::int64_t activation_ = 0, level_ = 0;
};

}  // namespace

ov::Extension::Ptr shardyard::packed_experts_extension() {
    return std::make_shared<ov::OpExtension<PackedExperts>>();
}
