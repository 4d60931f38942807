# A working tree with every case that a sync must get right, made in the current directory: a repository with no commit yet.
set -e
lib=$1
mkdir -p sub/deep dist assets modes links secret nested
for name in kept staged unstaged both deleted gone old; do echo "$name" > "$name"; done
printf '*.log\nout/\n' > .gitignore
printf 'deep/*.tmp\n!deep/keep.tmp\n' > sub/.gitignore
printf '*.bak\nsecret\n' > .crabboxignore
echo sub > sub/file
echo tracked > dist/tracked
printf '*.bin filter=lfs diff=lfs merge=lfs -text\n' > .gitattributes
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n' 7 > assets/pointer.bin
for name in README readme ReadMe; do echo "$name" > "$name"; done
echo newline > "$(printf 'new\nline')"
echo utf8 > "$(printf '\303\244\342\202\254')"
echo latin1 > "$(printf '\344\377')"
echo dash > ./-rf
echo blank > 'a b '
: > empty
for mode in 755 644 600 444 775; do echo "$mode" > "modes/$mode"; chmod "$mode" "modes/$mode"; done
ln -s ../kept links/file
ln -s ../sub links/directory
ln -s nowhere links/dangling
ln -s /etc/hostname links/absolute
ln -s ../../../outside links/up
git add -A
git -c protocol.file.allow=always submodule --quiet add "$lib" module
git commit -qm one
echo 2 >> kept
git commit -qam two

echo edit >> staged && git add staged
echo edit >> unstaged
echo first >> both && git add both && echo second >> both
git rm -q deleted
rm gone
git mv old renamed
echo new > untracked
echo new > sub/deep/untracked
echo tmp > sub/deep/x.tmp
echo tmp > sub/deep/keep.tmp
echo log > x.log
echo bak > x.bak
echo secret > secret/key
echo built > dist/built
mkdir -p out empty-directory && echo out > out/file
git init -q --template= nested && echo nested > nested/file
truncate -s 24M huge
printf begin | dd of=huge conv=notrunc status=none
printf end | dd of=huge bs=1 seek=25165821 conv=notrunc status=none
