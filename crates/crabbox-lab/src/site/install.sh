# Makes the lab a host on which crabbox can lease: programs, image, CNI network, an identity for git.
set -e
for program in firecracker jailer; do
  cmp -s /artefacts/bin/$program /usr/local/bin/$program || install -m 755 /artefacts/bin/$program /usr/local/bin/$program
done
store=$HOME/.cache/crabbox/images
if ! [ -d "$store" ]; then
  mkdir -p "$HOME/.cache/crabbox"
  chmod 700 "$HOME/.cache/crabbox"
  cp -a --sparse=always /artefacts/images "$store.new"
  mv "$store.new" "$store"
fi
mkdir -p /etc/cni/conf.d
cat > /etc/cni/conf.d/10-crabbox.conflist <<'J'
{
  "cniVersion": "1.0.0",
  "name": "crabbox-firecracker",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": true,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "192.168.127.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] }
    }
  ]
}
J
git config --global user.name lab
git config --global user.email lab@example.invalid
git config --global init.defaultBranch main
# A kernel that loads these while a guest boots needs seconds for it here, of one processor that both share.
modprobe -a tun veth overlay loop nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet nft_limit nft_connlimit nft_reject_inet nft_compat
