// All layers of a stage for a single token, as one operation: what lies between products would cost as much as they do.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"
#include "fused_layer.hpp"
#include "groups.hpp"
#include "packed_matrices.hpp"
#include "token_attention.hpp"

using namespace shardyard;

namespace {

// Matrices of a layer: dense, up, gate, proj, and the next layer's qkv, where there is one.
constexpr std::size_t kMatrices = 5;
// x float32 [1, hidden], the first layer's qkv without its bias, cosines and sines of the position, `past_lens` [1] and
// `block_indices` of the sequence; then of each layer the key cache, of each the value cache, the norm before the MLP,
// of each but the first the norm before attention, and of each the bias of qkv, if there are any.
enum Input : std::size_t { kX, kQkv, kCos, kSin, kPast, kBlocks, kLayers };

// → x after the layers, [1, hidden]. It writes to the caches, though they are inputs, as the plugin's attention does.
class TokenDecoder : public ov::op::Op {
public:
    OPENVINO_OP("TokenDecoder", "shardyard");

    TokenDecoder() = default;
    TokenDecoder(const ov::OutputVector& inputs, const TokenDecoder& other)
        : Op(inputs), matrices_(other.matrices_), windows_(other.windows_), heads_(other.heads_),
          kv_heads_(other.kv_heads_), activation_(other.activation_), level_(other.level_), group_(other.group_),
          scale_(other.scale_), epsilon_(other.epsilon_) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override { set_output_type(0, ov::element::f32, get_input_partial_shape(kX)); }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<TokenDecoder>(inputs, *this);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("matrices", matrices_);
        visitor.on_attribute("windows", windows_);
        visitor.on_attribute("heads", heads_);
        visitor.on_attribute("kv_heads", kv_heads_);
        visitor.on_attribute("activation", activation_);
        visitor.on_attribute("level", level_);
        visitor.on_attribute("group", group_);
        visitor.on_attribute("scale", scale_);
        visitor.on_attribute("epsilon", epsilon_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape& shape = inputs[kX].get_shape();
        const std::size_t layers = windows_.size();
        outputs[0].set_shape(shape);
        auto* x = outputs[0].data<float>();
        std::copy_n(inputs[kX].data<const float>(), shape[1], x);
        const auto* first = inputs[kQkv].data<const float>();
        std::vector<float> qkv(first, first + inputs[kQkv].get_size());
        std::vector<float> mixed(qkv.size() / (heads_ + 2 * kv_heads_) * heads_);
        const LayerForm form{static_cast<Activation>(activation_), static_cast<Level>(level_),
                             group_ < 0 ? nullptr : &known_group(group_), static_cast<float>(epsilon_)};
        for (std::size_t layer = 0; layer < layers; ++layer) {
            if (inputs.size() > bias(0)) {
                const auto* more = inputs[bias(layer)].data<const float>();
                for (std::size_t i = 0; i < qkv.size(); ++i) qkv[i] += more[i];
            }
            attend_token(step(inputs, layer, qkv), mixed.data());
            run_layer(form, parts(inputs, layer), x, mixed.data(), 1, x, qkv.data());
        }
        return true;
    }

private:
    std::size_t keys(std::size_t layer) const { return kLayers + layer; }
    std::size_t values(std::size_t layer) const { return keys(layer) + windows_.size(); }
    std::size_t mlp_norm(std::size_t layer) const { return values(layer) + windows_.size(); }
    std::size_t attention_norm(std::size_t layer) const { return mlp_norm(layer) + windows_.size() - 1; }
    std::size_t bias(std::size_t layer) const { return attention_norm(layer) + windows_.size(); }

    TokenStep step(const ov::TensorVector& inputs, std::size_t layer, const std::vector<float>& qkv) const {
        const auto cache = [&](std::size_t index) {
            return const_cast<std::uint8_t*>(inputs[index].data<const std::uint8_t>());
        };
        const std::size_t past = *inputs[kPast].data<const std::int32_t>(), window = windows_[layer];
        return {qkv.data(),
                inputs[kCos].data<const float>(),
                inputs[kSin].data<const float>(),
                cache(keys(layer)),
                cache(values(layer)),
                inputs[kBlocks].data<const std::int32_t>(),
                static_cast<std::size_t>(heads_),
                static_cast<std::size_t>(kv_heads_),
                qkv.size() / (heads_ + 2 * kv_heads_),
                inputs[kCos].get_size(),
                past,
                window && past + 1 > window ? past + 1 - window : 0,
                static_cast<float>(scale_)};
    }

    LayerParts parts(const ov::TensorVector& inputs, std::size_t layer) const {
        const auto matrix = [&](std::size_t index) -> const PackedMatrix& {
            return known_matrix(matrices_[layer * kMatrices + index]);
        };
        const bool next = layer + 1 < windows_.size();
        return {matrix(0),
                matrix(1),
                matrix(2),
                matrix(3),
                inputs[mlp_norm(layer)].data<const float>(),
                next ? &matrix(4) : nullptr,
                next ? inputs[attention_norm(layer + 1)].data<const float>() : nullptr};
    }

    std::vector<std::int64_t> matrices_, windows_;
    std::int64_t heads_ = 1, kv_heads_ = 1, activation_ = 0, level_ = 0, group_ = -1;
    double scale_ = 1, epsilon_ = 0;
};

}  // namespace

ov::Extension::Ptr shardyard::token_decoder_extension() { return std::make_shared<ov::OpExtension<TokenDecoder>>(); }
