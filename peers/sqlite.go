package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite"
)

// maxGroup bounds the events of one transaction.
const maxGroup = 2000

// sqlite is a table in an SQLite database with a write-ahead log and synchronous=FULL. One writer takes all that waits into one
// transaction, as fast producers of SQLite have to.
type sqlite struct {
	db        *sql.DB
	one, many *sql.Stmt // of one row, and of rows
	jobs      chan job
	done      chan struct{}
}

type job struct {
	events [][]byte
	answer chan error
}

func openSQLite(ctx context.Context, dir string) (store, error) {
	db, err := sql.Open("sqlite", filepath.Join(dir, "log.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	s := &sqlite{db: db, jobs: make(chan job, 4096), done: make(chan struct{})}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go s.write(context.WithoutCancel(ctx))
	return s, nil
}

// prepare makes the table, and makes sure that a commit is synced.
func (s *sqlite) prepare(ctx context.Context) error {
	var mode, level string
	err := errors.Join(s.db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode), s.db.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&level))
	if err != nil {
		return fmt.Errorf("opening sqlite: %w", err)
	}
	if full := "2"; mode != "wal" || level != full {
		return fmt.Errorf("sqlite runs with journal_mode %s and synchronous %s", mode, level)
	}
	if _, err = s.db.ExecContext(ctx, "CREATE TABLE log (n INTEGER PRIMARY KEY, event BLOB NOT NULL)"); err != nil {
		return err
	}
	const insert = "INSERT INTO log (event) VALUES (?)"
	if s.one, err = s.db.PrepareContext(ctx, insert); err != nil {
		return err
	}
	s.many, err = s.db.PrepareContext(ctx, insert+strings.Repeat(",(?)", rows-1))
	return err
}

func (s *sqlite) append(ctx context.Context, events [][]byte) error {
	j := job{events, make(chan error, 1)}
	s.jobs <- j
	return <-j.answer
}

// write is the one writer.
func (s *sqlite) write(ctx context.Context) {
	defer close(s.done)
	for first := range s.jobs {
		group, events := []job{first}, len(first.events)
	more:
		for events < maxGroup {
			select {
			case j, ok := <-s.jobs:
				if !ok {
					break more
				}
				group, events = append(group, j), events+len(j.events)
			default:
				break more
			}
		}
		err := s.insert(ctx, group)
		for _, j := range group {
			j.answer <- err
		}
	}
}

// rows is how many an INSERT takes: fewer statements, less of SQLite's own work a row.
const rows = 100

func (s *sqlite) insert(ctx context.Context, group []job) error {
	var args []any
	for _, j := range group {
		for _, e := range j.events {
			args = append(args, e)
		}
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // without effect after Commit
	one, many := tx.StmtContext(ctx, s.one), tx.StmtContext(ctx, s.many)
	for ; len(args) >= rows; args = args[rows:] {
		if _, err := many.ExecContext(ctx, args[:rows]...); err != nil {
			return err
		}
	}
	for ; len(args) > 0; args = args[1:] {
		if _, err := one.ExecContext(ctx, args[0]); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (s *sqlite) close() error {
	close(s.jobs)
	<-s.done
	return s.db.Close()
}
