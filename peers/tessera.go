package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"k8s.io/klog/v2"
)

// tesseraLog is a Tessera log in files. Its futures resolve when an entry is in the tree and both are synced (storage/posix: Add);
// publishing a checkpoint, which takes another 100 ms at least, is not waited for, nor is there anything against repeats.
type tesseraLog struct {
	appender *tessera.Appender
	stop     func()
}

// openTessera makes a log that integrates after so many entries or so long, whatever comes first.
func openTessera(ctx context.Context, dir string, size uint, age time.Duration) (store, error) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)                                    // it tells of each new log
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // what waits is answered until close
	skey, _, err := note.GenerateKey(rand.Reader, "bench.example/log")
	if err != nil {
		cancel()
		return nil, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		cancel()
		return nil, err
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		cancel()
		return nil, err
	}
	opts := tessera.NewAppendOptions().WithCheckpointSigner(signer).WithCheckpointInterval(time.Second).WithBatching(size, age).WithPushback(1 << 20)
	a, _, _, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening tessera: %w", err)
	}
	return &tesseraLog{a, cancel}, nil
}

func (t *tesseraLog) append(ctx context.Context, events [][]byte) error {
	waiting := make([]tessera.IndexFuture, len(events))
	for i, e := range events {
		waiting[i] = t.appender.Add(ctx, tessera.NewEntry(e))
	}
	var errs []error
	for _, w := range waiting {
		_, err := w()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (t *tesseraLog) close() error { t.stop(); return nil }
